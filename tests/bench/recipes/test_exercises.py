"""The exercises are runs of train.py, and their rows have the results of the runs."""

import json

import pytest

import sample
import train
from bench.recipes import common, exercises
from bench.recipes.exercises import EXERCISES
from gpt.config.cli import parse_run
from tests.runs import CPU, SHORT, SIZES, write_text


def runs_of(exercise, base=""):
    """The options of every run of train.py in an exercise."""
    base = exercise.get("base", base)
    for name, value in exercise.items():
        if isinstance(value, dict):
            yield from runs_of(value, base)
        elif isinstance(value, str) and name not in ("label", "base"):
            yield f"{base} {value}"


@pytest.mark.parametrize("options", list(runs_of(EXERCISES)))
def test_the_options_of_every_run_parse(options):
    parse_run(options.split(), "lecture")


SMALL = " ".join([*SIZES, *CPU, *SHORT])


def test_features_are_compared_seed_by_seed(monkeypatch):
    def run(options, seed):
        good = "swiglu" in options
        return {"final_val_loss": seed - 0.5 * good, "training_seconds": 10.0 + 5 * good}

    monkeypatch.setattr(exercises, "summary_of", run)
    rows = {row["change"]: row for row in exercises.features(EXERCISES["features"], "text")}
    _, _, *found = rows["SwiGLU"].values()
    assert found == ["1.5000", "0.5000, 1.5000, 2.5000", "-0.5000", "1.50x"]
    assert rows["RoPE"]["difference"] == "+0.0000"
    assert rows["the lecture's modules"]["difference"] == ""


def test_results_of_runs_are_written_to_result_files(tmp_path, monkeypatch):
    def run_in_process(script, *arguments):
        main = {"train.py": train.main, "sample.py": sample.main}[script]
        assert main(list(map(str, arguments))) == 0

    monkeypatch.setattr(common, "run_script", run_in_process)
    monkeypatch.setattr(common.results, "RESULTS", tmp_path)
    options, text = f"{SMALL} --preset quickstart", write_text(tmp_path)
    calculators = {"small": f"{SMALL} --preset addition --data addition-1"}
    runs = {"pretrain": f"{options} --data {text}", "finetune": options}
    changes = {
        "arithmetic": {"seeds": [1, 2], "runs": calculators},
        "finetune": {"seeds": [1], **runs},
        "int8": {"seeds": [1], "runs": {"small": options}},
    }
    for name, changed in changes.items():
        monkeypatch.setitem(EXERCISES, name, EXERCISES[name] | changed)
    assert exercises.main([*changes, f"--text={text}"]) == 0
    paths = [next(tmp_path.glob(f"exercises-{name}-*.json")) for name in changes]
    arithmetic, finetune, int8 = (json.loads(path.read_text())["rows"] for path in paths)
    found = [(row["task"], row["seed"], row["steps"]) for row in arithmetic]
    assert found == [("small", 1, 4), ("small", 2, 4)]
    assert all(row["accuracy"].endswith("%") for row in arithmetic)
    assert [row["step"] for row in finetune] == [0, 2, 4]
    assert finetune[0]["from scratch"] != finetune[0]["initialised from python-docs"]
    (row,) = int8
    assert 0 < row["int8 size, MB"] < row["size, MB"] == pytest.approx(0.03, abs=0.02)
    change = float(row["increase"].rstrip("%")) / 100
    assert row["int8 perplexity"] == pytest.approx(row["perplexity"] * (1 + change), rel=1e-4)
