"""Metrics: one line of JSON each, and a one-line error if they cannot be written."""

import json
import math
import sys
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt import UserError
from gpt.config.train import TrainConfig
from gpt.runs.metrics import MetricsLog, plot_losses, read_metrics
from tests.runs import full_disk, losses, metrics

CONFIG = asdict(TrainConfig())


def test_each_log_call_appends_a_line_with_null_for_what_is_not_finite(tmp_path):
    sent, expected = [], [{"step": 0, "val_loss": 2.5, "sample": "To be"}]
    expected.append({"step": 1, "loss": None, "accuracy": None})
    with MetricsLog(tmp_path, CONFIG) as log:
        log._track = lambda values, step: sent.append((values, step))
        log.log(step=0, val_loss=2.5, sample="To be")
        log.log(step=1, loss=math.nan, accuracy=math.inf)
        assert metrics(tmp_path) == expected
    assert sent[0] == ({"val_loss": 2.5}, 0)  # samples are not sent to the tracker
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
    plot_losses(expected[1:], tmp_path / "loss.png")  # without a point of either loss
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_resume_keeps_the_lines_up_to_its_step(tmp_path):
    with MetricsLog(tmp_path, CONFIG) as log:
        for step in range(5):
            log.log(step=step, loss=float(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    with MetricsLog(tmp_path, CONFIG, resume_at=2) as log:
        log.log(step=3, loss=9.0)
    assert losses(tmp_path) == [0, 1, 2, 9]
    with MetricsLog(tmp_path, CONFIG):
        assert metrics(tmp_path) == []


@given(st.binary() | st.sampled_from((b"7", b"{}", b'{"step": "1"}', b"[" * 100_000)))
def test_damaged_lines_are_skipped(tmp_path_factory, line):
    folder = tmp_path_factory.getbasetemp()
    (folder / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    assert read_metrics(folder) == [{"step": 1}, {"step": 2}]


def test_a_full_disk_raises_and_loses_one_line(tmp_path):
    with MetricsLog(tmp_path, CONFIG) as log:
        log.log(step=1, loss=1.0)
        with full_disk(40):
            with pytest.raises(UserError, match=r"cannot be written \(File too large\)") as error:
                log.log(step=2, loss=1.0)
            with pytest.raises(UserError, match="cannot be written"):
                log.finish({"x": "y" * 100})
        with full_disk(0), pytest.raises(UserError, match="cannot be written"):
            MetricsLog(tmp_path, CONFIG, resume_at=1)
    assert "\n" not in str(error.value)
    assert read_metrics(tmp_path)[0] == {"step": 1, "loss": 1.0}
    assert not list(tmp_path.glob("*.partial"))
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_tensorboard_receives_the_values(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    with MetricsLog(tmp_path, CONFIG, "tensorboard") as log:
        log.log(step=3, val_loss=2.5)
    (events,) = tmp_path.glob("events.*")
    assert b"val_loss" in events.read_bytes()


@pytest.mark.parametrize(
    ("tracker", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")]
)
def test_a_tracker_that_is_not_installed_is_reported(tmp_path, monkeypatch, tracker, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"--log {tracker} needs .*: pip install {tracker}"):
        MetricsLog(tmp_path, CONFIG, tracker)
