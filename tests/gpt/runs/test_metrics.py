"""Metrics: one line of JSON each, and a one-line error if they cannot be read or written."""

import json
import math
import re
import sys
from dataclasses import asdict
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt import UserError
from gpt.config.train import TrainConfig
from gpt.files import Folder
from gpt.runs.metrics import MetricsLog, Tracker, plot_losses, read_metrics
from tests.runs import full_disk, losses, metrics, run

CONFIG = asdict(TrainConfig())
VALUES = ("true", '"2"', "[2]", "{}", "1e999", "NaN", "1" + "0" * 400)
BAD = "".join(f'\n{{"step": {value}}}\n{{"step": 1, "loss": {value}}}' for value in VALUES).encode()


@pytest.fixture
def folder(tmp_path):
    with Folder(tmp_path) as folder:
        yield folder


def test_each_log_call_appends_a_line_with_null_for_what_is_not_finite(tmp_path, folder):
    sent, expected = [], [{"step": 0, "val_loss": 2.5}]
    expected.append({"step": 1, "loss": None, "accuracy": None})
    tracker = Tracker("none", CONFIG)
    tracker.log = lambda *values: sent.append(values)
    with MetricsLog(folder, CONFIG, tracker) as log:
        log.log(step=0, val_loss=2.5)
        log.log(step=1, loss=math.nan, accuracy=math.inf)
        assert metrics(tmp_path) == expected
    assert sent[0] == ({"val_loss": 2.5}, 0)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
    assert plot_losses(expected[1:]).startswith(b"\x89PNG")  # without a point of either loss
    line = b'{"step": 1%s, "loss": 9e38, "val_loss": -9e38, "accuracy": 9e38}\n' % (b"0" * 38)
    (tmp_path / "metrics.jsonl").write_bytes(line + line)
    assert plot_losses(read_metrics(tmp_path)).startswith(b"\x89PNG")


def test_resume_keeps_the_lines_up_to_its_step(tmp_path, folder):
    with MetricsLog(folder, CONFIG) as log:
        for step in range(5):
            log.log(step=step, loss=float(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    with MetricsLog(folder, CONFIG, resume_at=2) as log:
        log.log(step=3, loss=9.0)
    assert losses(tmp_path) == [0, 1, 2, 9]
    with MetricsLog(folder, CONFIG):
        assert metrics(tmp_path) == []


@given(st.binary() | st.sampled_from((b"7", b"{}", b'{"step": "1"}', b"[" * 100_000)))
def test_damaged_lines_are_skipped(tmp_path_factory, line):
    folder = tmp_path_factory.getbasetemp()
    assert read_metrics(folder / "nowhere") == []
    (folder / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + BAD + b'\n{"step": 2}\n')
    assert read_metrics(folder) == [{"step": 1}, {"step": 2}]


def test_a_full_disk_raises_and_loses_one_line(tmp_path, folder):
    with MetricsLog(folder, CONFIG) as log:
        log.log(step=1, loss=1.0)
        with full_disk(40):
            with pytest.raises(
                UserError, match=r"cannot be read or written \(File too large\)"
            ) as error:
                log.log(step=2, loss=1.0)
            with pytest.raises(UserError, match="cannot be read or written"):
                log.finish({"x": "y" * 100})
        with full_disk(0), pytest.raises(UserError, match="cannot be read or written"):
            MetricsLog(folder, CONFIG, resume_at=1)
    assert "\n" not in str(error.value)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]
    assert not list(tmp_path.glob("*.partial"))
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_a_tracker_that_is_not_installed_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--log wandb needs its package: pip install wandb"):
        Tracker("wandb", CONFIG)


def test_a_tracker_that_does_not_start_stops_the_run_before_anything_is_moved(
    tmp_path, monkeypatch, capsys
):
    assert run(tmp_path / "out") == 0
    wandb = SimpleNamespace(init=Mock(side_effect=Exception("no API key\nconfigured")))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert run(tmp_path / "out", "--log=wandb") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: --log wandb does not start (no API key); run wandb login")
    assert not (tmp_path / "out.1").exists()


def test_a_tracker_that_fails_later_is_disabled_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    log = Mock(side_effect=[None, None, ConnectionError("no route\nto host")])
    wandb = SimpleNamespace(init=Mock(return_value=SimpleNamespace(log=log)))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert run(tmp_path / "out", "--log=wandb") == 0
    assert log.call_count == 3
    out, _ = capsys.readouterr()
    assert out.count("--log wandb is disabled from here on (no route); see metrics.jsonl\n") == 1
    assert len(losses(tmp_path / "out")) == 4
    # whoever resumes the run must ask for it
    assert run(tmp_path / "out", "--resume", "--max-iters=5") == 0
    assert wandb.init.call_count == 1
    assert re.search("changed options: .*--log none .was wandb.", capsys.readouterr().out)
