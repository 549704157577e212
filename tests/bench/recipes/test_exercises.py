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


@pytest.fixture
def in_process(monkeypatch):
    def run_script(script, *arguments):
        main = {"train.py": train.main, "sample.py": sample.main}[script]
        assert main(list(map(str, arguments))) == 0

    monkeypatch.setattr(common, "run_script", run_script)


def test_features_are_compared_seed_by_seed(monkeypatch):
    def run(options, seed):
        good = "swiglu" in options
        return {"final_val_loss": seed - 0.5 * good, "training_seconds": 10.0 + 5 * good}

    monkeypatch.setattr(exercises, "summary_of", run)
    rows = {row["change"]: row for row in exercises.features(EXERCISES["features"], "text")}
    assert list(rows["SwiGLU"].values())[2:] == [
        *("1.5000", "0.5000, 1.5000, 2.5000", "-0.5000", "1.50x")
    ]
    assert rows["RoPE"]["difference"] == "+0.0000"
    assert rows["the lecture's modules"]["difference"] == ""


def test_accuracies_are_written_to_a_result_file(in_process, tmp_path, monkeypatch):
    runs = {"small": f"{SMALL} --preset addition --data addition-1"}
    exercise = EXERCISES["pairs"] | {"seeds": [1, 2], "runs": runs}
    monkeypatch.setitem(EXERCISES, "pairs", exercise)
    monkeypatch.setattr(common.results, "RESULTS", tmp_path)
    assert exercises.main(["pairs"]) == 0
    (path,) = tmp_path.glob("exercises-pairs-*.json")
    rows = json.loads(path.read_text())["rows"]
    found = [(row["model"], row["seed"], row["steps"]) for row in rows]
    assert found == [("small", 1, 4), ("small", 2, 4)]
    assert all(row["accuracy"].endswith("%") for row in rows)


def test_finetuning_is_compared_with_training_from_scratch(in_process, tmp_path):
    options = f"{SMALL} --preset quickstart"
    pretrain = f"{options} --data {write_text(tmp_path, 900)}"
    exercise = {"seeds": [1], "pretrain": pretrain, "finetune": options}
    rows = exercises.finetune(exercise, str(write_text(tmp_path)))
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert rows[0]["from scratch"] != rows[0]["initialised from python-docs"]


def test_sizes_and_perplexities_of_int8_weights_are_those_of_the_files(in_process, tmp_path):
    exercise = {"seeds": [1], "runs": {"small": f"{SMALL} --preset quickstart"}}
    (row,) = exercises.int8(exercise, str(write_text(tmp_path)))
    assert 0 < row["int8 size, MB"] < row["size, MB"] == pytest.approx(0.03, abs=0.02)
    change = float(row["increase"].rstrip("%")) / 100
    assert row["int8 perplexity"] == pytest.approx(row["perplexity"] * (1 + change), rel=1e-4)
