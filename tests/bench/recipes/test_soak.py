"""The soak finds what is lost."""

import shutil

import pytest

from bench.prove.stages import soak as stage
from bench.recipes import soak
from gpt import UserError
from gpt.runs.checkpoint import load, save
from tests.gpt.runs.saving import KINDS, save_step, tensors_of


def blows(folder):
    return soak.Blows(folder, [], steps=9, longest=1.0, seed=0)


def test_steps_do_not_go_back(tmp_path):
    assert blows(tmp_path).check(-1) == -1  # nothing is saved yet
    save_step(tmp_path, 4)
    assert blows(tmp_path).check(-1) == 4
    assert blows(tmp_path).check(4) == 4
    with pytest.raises(soak.Lost, match="step 6 was saved, and after it step 4"):
        blows(tmp_path).check(6)
    (tmp_path / "last.json").unlink()
    with pytest.raises(soak.Lost, match="the last checkpoint is gone"):
        blows(tmp_path).check(4)


@pytest.mark.parametrize("name", ["best", "last", "step-0000003"])
def test_every_checkpoint_must_be_whole(tmp_path, name):
    save_step(tmp_path, 3, {"step-0000003": KINDS})
    save_step(tmp_path, 4)
    damaged = (tmp_path / f"{name}.json").read_text().replace('"step": ', '"step": 1')
    (tmp_path / f"{name}.json").write_text(damaged)
    with pytest.raises(UserError, match="damaged"):
        blows(tmp_path).check(3)


def test_one_bit_and_one_loss(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    (whole / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "seconds": 1.0}\n')
    save_step(whole, 4)
    shutil.copytree(whole, parts)
    (parts / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "seconds": 9.0}\n')
    soak.compare(whole, parts)
    (parts / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5000000000000001}\n')
    with pytest.raises(soak.Lost, match=r"losses in metrics\.jsonl"):
        soak.compare(whole, parts)
    tensors = tensors_of(4)
    tensors["optimizer"]["0/a.weight/exp_avg"][0, 0] *= 1 + 2**-23
    save(parts, {"last": KINDS}, tensors, {"step": 4})
    with pytest.raises(soak.Lost, match="the optimizer of step 4"):
        soak.compare(whole, parts)
    assert load(whole, "last")[0]["step"] == 4


def test_the_stage_says_what_was_lost(monkeypatch):
    monkeypatch.setattr(stage.sys, "executable", "echo")  # the command itself, as if it were said
    outcome = stage.work("eager", 60.0)
    assert outcome["state"] == "passed"
    assert "--run-only --minutes=0.6 -- --device=cuda --kernels=triton" in outcome["lines"][0]
    monkeypatch.setattr(stage.sys, "executable", "false")
    assert stage.work("eager", 60.0) == {"state": "failed", "says": "nothing was said"}
