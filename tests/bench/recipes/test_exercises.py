"""The exercises' recipes are runs of train.py, and their rows say what the runs have said."""

import json
import time
from types import SimpleNamespace

import pytest

import train
from bench.recipes import exercises, reinforce
from gpt.config.cli import parse_run
from tests.runs import CPU, SHORT, SIZES, write_text

RUNS = [
    *exercises.ARITHMETIC.values(),
    *(f"{exercises.FEATURES_BASE} {options}" for options in exercises.FEATURES.values()),
    exercises.PRETRAIN,
    exercises.FINETUNE,
    *exercises.PAIRS.values(),
    *(
        options
        for stages in exercises.STAGES.values()
        for stage, options in stages.items()
        if stage != "reinforced"
    ),
]


@pytest.mark.parametrize("options", RUNS)
def test_each_recipe_is_a_run(options):
    parse_run(options.split(), "lecture")


def test_a_feature_s_change_is_that_of_the_same_seeds(monkeypatch):
    def run(options, seed):
        good = "swiglu" in options
        return {"final_val_loss": seed - 0.5 * good, "training_seconds": 10.0 + 5 * good}

    monkeypatch.setattr(exercises, "train", run)
    rows = {row["change"]: row for row in exercises.features("text")}
    assert rows["SwiGLU"]["validation loss"] == "1.5000"
    assert rows["SwiGLU"]["of the seeds"] == "0.5000, 1.5000, 2.5000"
    assert rows["SwiGLU"]["change of the loss"] == "-0.5000"
    assert rows["SwiGLU"]["time"] == "1.50x"
    assert rows["RoPE"]["change of the loss"] == "+0.0000"
    assert rows["the lecture's modules"]["change of the loss"] == ""


def test_a_recipe_that_takes_too_long_is_stopped_and_writes_nothing(tmp_path, monkeypatch, capsys):
    def slow(text):
        exercises.subprocess.run(["sleep", "60"])

    monkeypatch.setattr(exercises, "RECIPES", {"slow": slow, "quick": lambda text: [{"loss": 1}]})
    began = time.monotonic()
    assert exercises.main(["--minutes", "0.01", "--to", str(tmp_path)]) == 1
    assert time.monotonic() - began < 30
    assert "slow takes longer than 0.01 minutes, and was stopped" in capsys.readouterr().out
    (written,) = tmp_path.iterdir()
    assert json.loads(written.read_text())["rows"] == [{"loss": 1}]


def test_a_run_begun_from_another_stands_beside_one_from_scratch(tmp_path, monkeypatch):
    in_this_process = SimpleNamespace(run=lambda command, **_: train.main(command[2:]), DEVNULL=0)
    monkeypatch.setattr(exercises, "subprocess", in_this_process)
    small = " ".join([*SIZES, *CPU, *SHORT, "--preset quickstart"])
    monkeypatch.setattr(exercises, "SEEDS", (1,))
    monkeypatch.setattr(exercises, "PRETRAIN", f"{small} --data {write_text(tmp_path, 900)}")
    monkeypatch.setattr(exercises, "FINETUNE", small)
    rows = exercises.finetune(str(write_text(tmp_path)))
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert rows[0]["from scratch"] != rows[0]["begun from python-docs"]


def test_each_stage_begins_with_the_one_before(tmp_path, monkeypatch):
    def run(command, **_):
        program = train.main if command[1] == "train.py" else reinforce.main
        arguments = command[2:] if command[1] == "train.py" else command[3:]
        assert program(arguments) == 0

    monkeypatch.setattr(exercises, "subprocess", SimpleNamespace(run=run, DEVNULL=0))
    small = " ".join([*SIZES, *CPU, *SHORT, "--preset addition"])
    texts = {"first": f"{small} --data {write_text(tmp_path)}"}
    texts["then"] = f"{small} --data addition-1"
    reinforced = {"reinforced": "--steps 2 --problems 4"}
    monkeypatch.setattr(exercises, "STAGES", {"sums": texts | reinforced})
    monkeypatch.setattr(exercises, "STAGES_SEEDS", {"sums": (1, 2)})
    rows = exercises.stages("text")
    assert [(row["seed"], row["stage"], row["steps"]) for row in rows] == [
        (seed, *stage)
        for seed in (1, 2)
        for stage in (("first", 4), ("then", 4), ("reinforced", 2))
    ]
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert rows[0]["accuracy"] == rows[0]["errors"] == ""
    for row in (rows[1], rows[2]):
        shares = [float(row[name].rstrip("%")) for name in ("accuracy", "errors")]
        assert sum(shares) == pytest.approx(100)
