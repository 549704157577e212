"""The lines that a run prints and logs, and its clock."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gpt.config.presets import PRESETS
from gpt.runs.header import describe_learning_rate
from gpt.runs.progress import Progress
from gpt.runs.run_state import RunState


def make():
    """The progress of a run, and the list to which it logs."""
    lines = []
    log = SimpleNamespace(log=lambda **values: lines.append(values))
    options = {"max_iters": 10, "log_interval": 2, "tokens_per_step": 100, "flops_per_step": 1e6}
    return Progress(log, torch.device("cpu"), RunState(), **options), lines


def test_a_line_is_printed_and_logged_per_interval(capsys):
    """tests/test_train.py has the format of the lines."""
    progress, lines = make()
    for step in range(5):
        progress.step(step, torch.tensor(3.0 - step))
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 2.0), (4, 0.0)]
    assert 0 < lines[0]["seconds"] < lines[1]["seconds"]
    assert capsys.readouterr().out.count("iter ") == 2


def test_paused_time_is_not_counted():
    progress, _ = make()
    progress.step(0, torch.tensor(1.0))
    with progress.paused():
        time.sleep(0.3)
    progress.step(1, torch.tensor(1.0))
    assert progress.seconds < 0.2
    assert progress.tokens_per_second(2) == pytest.approx(200 / progress.seconds)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "100 steps of warm-up to 0.001, then a cosine to 0.0001 at step 5000"),
        ({"lr_decay_iters": 90}, "100 steps of warm-up to 0.001, then 0.0001, since the decay "),
        ({"decay_lr": False}, "0.001, constant, without warm-up, which needs --decay-lr"),
        ({"warmup_iters": 0, "optimizer": "muon"}, "0.001 (Muon 0.02), then a cosine to 0.0001 "),
    ],
)
def test_the_header_describes_the_learning_rate(changes, line):
    described = describe_learning_rate(replace(PRESETS["shakespeare-char"], **changes))
    assert described.startswith(f"learning rate: {line}")
