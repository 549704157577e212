"""What a run leaves in its folder, who may work in it, and that a full disk is one sentence."""

import errno
import json
import math
import os
import resource
import sys
from dataclasses import asdict, replace

import pytest

from gpt import UserError
from gpt.config.cli import train_config_from_json
from gpt.config.train import TrainConfig
from gpt.runs.metrics import NoRecord, Record, draw_losses, open_folder, read_metrics

CONFIG = TrainConfig()


# --- the folder -----------------------------------------------------------------------------------


def test_a_folder_is_made(tmp_path):
    lock, earlier = open_folder(tmp_path / "a" / "b", resume=False)
    assert earlier is None
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["lock"]
    del lock


def test_an_earlier_run_is_kept_under_another_name(tmp_path):
    for number in (None, 1, 2):
        lock, earlier = open_folder(tmp_path / "out", resume=False)
        assert earlier == (tmp_path / f"out.{number}" if number else None)
        (tmp_path / "out" / "config.json").write_text(str(number))
        del lock
    assert (tmp_path / "out.1" / "config.json").read_text() == "None"
    assert (tmp_path / "out.2" / "config.json").read_text() == "1"


def test_a_resumed_run_stays_and_loses_what_a_killed_process_left(tmp_path):
    for name in ("config.json", "last.json", "weights.77.partial"):
        (tmp_path / name).write_text("")
    lock, earlier = open_folder(tmp_path, resume=True)
    assert earlier is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "last.json", "lock"]
    del lock


@pytest.mark.parametrize("resume", [False, True])
def test_two_cannot_work_in_one_folder(tmp_path, resume):
    lock, _ = open_folder(tmp_path / "out", resume=False)
    (tmp_path / "out" / "config.json").write_text("")
    with pytest.raises(UserError, match="is at work in"):
        open_folder(tmp_path / "out", resume)
    assert not (tmp_path / "out.1").exists()
    del lock
    lock, _ = open_folder(tmp_path / "out", resume)
    del lock


def test_a_folder_that_cannot_be_one(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"--out-dir .* cannot be used: "):
            open_folder(folder, resume=False)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_only_be_read(tmp_path, monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)  # root may write anywhere, and tests may be root's
    with pytest.raises(UserError, match=f"cannot be used: {os.strerror(number)}"):
        open_folder(tmp_path, resume=True)


# --- the record -----------------------------------------------------------------------------------


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_line_each(tmp_path):
    with Record(tmp_path, CONFIG) as record:
        record.log(step=0, val_loss=2.5)
        record.log(step=1, loss=0.1 + 0.2)
        assert lines_of(tmp_path) == [{"step": 0, "val_loss": 2.5}, {"step": 1, "loss": 0.1 + 0.2}]
    config = json.loads((tmp_path / "config.json").read_text())
    assert train_config_from_json(config, "") == CONFIG


def test_a_number_gone_bad_is_null(tmp_path):
    with Record(tmp_path, CONFIG) as record:
        record.log(step=1, loss=math.nan, milliseconds=math.inf)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert lines_of(tmp_path) == [{"step": 1, "loss": None, "milliseconds": None}]
    draw_losses(lines_of(tmp_path), tmp_path / "loss.png")


def test_a_resumed_record_goes_on_after_its_step(tmp_path):
    with Record(tmp_path, CONFIG) as record:
        for step in range(5):
            record.log(step=step, loss=float(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    with Record(tmp_path, CONFIG, resume_at=2) as record:
        assert [line["step"] for line in lines_of(tmp_path)] == [0, 1, 2]
        record.log(step=3, loss=9.0)
    assert lines_of(tmp_path)[-1] == {"step": 3, "loss": 9.0}
    with Record(tmp_path, CONFIG):
        assert lines_of(tmp_path) == []


@pytest.mark.parametrize(
    "line", [b"\xff\x00", b"[]", b"7", b"{}", b'{"step": "1"}', b'{"step": tr', b"[" * 100_000]
)
def test_lines_that_are_none_are_left_out(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_summary_and_picture(tmp_path):
    with Record(tmp_path, CONFIG) as record:
        record.log(step=1, loss=2.0)
        record.log(step=1, val_loss=2.0)
    record.finish({"best_val_loss": 2.0})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"best_val_loss": 2.0}
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    draw_losses([], tmp_path / "empty.png")
    assert (tmp_path / "empty.png").exists()


def test_other_ranks_write_nothing(tmp_path):
    with NoRecord() as _:
        NoRecord().log(step=1)
        NoRecord().finish({})


def limited(size):
    """No file may become larger, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def test_a_full_disk_is_one_sentence_and_costs_a_line(tmp_path):
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with Record(tmp_path, CONFIG) as record:
            record.log(step=1, loss=1.0)
            limited(40)
            with pytest.raises(UserError, match=r"cannot be kept \(File too large\)") as refusal:
                record.log(step=2, loss=1.0)
            with pytest.raises(UserError, match="cannot be kept"):
                record.finish({"x": "y" * 100})
            limited(0)
            with pytest.raises(UserError, match="cannot be kept"):
                Record(tmp_path, CONFIG, resume_at=1)
    finally:
        limited(soft)
    assert "\n" not in str(refusal.value)
    assert read_metrics(tmp_path)[0] == {"step": 1, "loss": 1.0}
    assert not list(tmp_path.glob("*.partial"))
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(
        json.dumps(asdict(CONFIG))
    )


# --- other places ---------------------------------------------------------------------------------


def test_a_sample_is_for_the_file_alone(tmp_path):
    elsewhere = []
    with Record(tmp_path, CONFIG) as record:
        record._also = lambda values, step: elsewhere.append((values, step))
        record.log(step=2, val_loss=1.5, sample="To be")
    assert elsewhere == [({"val_loss": 1.5}, 2)]
    assert read_metrics(tmp_path) == [{"step": 2, "val_loss": 1.5, "sample": "To be"}]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    config = replace(CONFIG, log="tensorboard", out_dir=str(tmp_path))
    with Record(tmp_path, config) as record:
        record.log(step=3, val_loss=2.5)
    (events,) = tmp_path.glob("events.*")
    assert b"val_loss" in events.read_bytes()


@pytest.mark.parametrize(
    ("log", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")]
)
def test_a_log_that_is_not_installed(tmp_path, monkeypatch, log, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"--log {log} needs it: pip install {log}"):
        Record(tmp_path, replace(CONFIG, log=log, out_dir=str(tmp_path)))
