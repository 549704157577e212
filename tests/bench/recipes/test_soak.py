"""The soak finds what is lost."""

import shutil

import pytest

from bench.recipes import soak
from gpt.files import Folder
from gpt.runs.checkpoint import save
from tests.gpt.runs.saving import KINDS, save_step, tensors_of


def test_a_saved_step_may_not_be_missing(tmp_path):
    assert soak.check(tmp_path, -1) == -1  # nothing is saved yet
    save_step(tmp_path, 4)
    assert soak.check(tmp_path, -1) == 4
    assert soak.check(tmp_path, 4) == 4
    with pytest.raises(soak.Lost, match="of step 4, after one of step 6"):
        soak.check(tmp_path, 6)
    (tmp_path / "last.json").unlink()
    with pytest.raises(soak.Lost, match="the last checkpoint is missing"):
        soak.check(tmp_path, 4)


def test_a_changed_bit_or_loss_is_found(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    save_step(whole, 4)
    (whole / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "seconds": 1.0}\n')
    shutil.copytree(whole, parts)
    (parts / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "seconds": 9.0}\n')
    soak.compare(whole, parts)
    (parts / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5000000000000001}\n')
    with pytest.raises(soak.Lost, match=r"losses in metrics\.jsonl"):
        soak.compare(whole, parts)
    tensors = tensors_of(4)
    tensors["optimizer"]["0/a.weight/exp_avg"][0, 0] *= 1 + 2**-23
    with Folder(parts) as folder:
        save(folder, {"last": KINDS}, tensors, {"step": 4})
    with pytest.raises(soak.Lost, match="the optimizer of step 4"):
        soak.compare(whole, parts)


def test_a_file_that_nothing_needs_is_found(tmp_path):
    save_step(tmp_path, 4)
    (tmp_path / "metrics.jsonl").write_text("")
    soak.compare(tmp_path, tmp_path)
    (tmp_path / ".tmpAb3x9Q").write_text("")
    with pytest.raises(soak.Lost, match=r"nothing needs are left: \.tmpAb3x9Q"):
        soak.compare(tmp_path, tmp_path)
