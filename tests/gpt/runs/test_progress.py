"""The lines that a run prints and logs, its clock, and the losses that a checkpoint holds."""

import math
import re
import time
from types import SimpleNamespace

import pytest
import torch

from gpt.runs.progress import Progress
from gpt.runs.run_state import RunState


def make(state=None):
    """The progress of a run, and the list to which it logs."""
    lines = []
    log = SimpleNamespace(log=lambda **values: lines.append(values))
    options = {"max_iters": 10, "log_interval": 2, "tokens_per_step": 100, "flops_per_step": 1e6}
    return Progress(log, torch.device("cpu"), state or RunState(), **options), lines


def test_lines_have_the_format_of_nanogpt(capsys):
    progress, lines = make()
    progress.evaluation(0, 4.0)
    for step in range(4):
        progress.step(step, torch.tensor(3.0 - step))
    progress.evaluation(4, 2.25)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "step 0: val loss 4.0000"
    line = r"iter 2: loss 2.0000, time \d+\.\d\dms, [\d,]+ tok/s"  # no mfu: the peak is not known
    assert re.fullmatch(line, printed[1])
    assert printed[2].startswith("iter 4: loss 0.0000, ")
    assert printed[3] == "step 4: train loss 1.5000, val loss 2.2500"
    seconds = [line.pop("seconds") for line in lines]
    assert seconds == sorted(seconds)
    assert all(line.pop("milliseconds") > 0 for line in lines if "loss" in line)
    assert lines == [
        {"step": 0, "val_loss": 4.0},
        {"step": 2, "loss": 2.0},
        {"step": 4, "loss": 0.0},
        {"step": 4, "train_loss": 1.5, "val_loss": 2.25},
    ]


def test_paused_time_is_not_counted():
    progress, _ = make()
    progress.step(0, torch.tensor(1.0))
    with progress.paused():
        time.sleep(0.3)
    progress.step(1, torch.tensor(1.0))
    assert progress.seconds < 0.2
    assert progress.tokens_per_second(2) == pytest.approx(200 / progress.seconds)


def test_resume_restores_the_losses_since_the_last_evaluation():
    (whole, expected), (first, _) = make(), make()
    for step in range(6):
        whole.step(step, torch.tensor(1 / (step + 3)))
    for step in range(3):
        first.step(step, torch.tensor(1 / (step + 3)))
    state = RunState(3, first.seconds, losses=first.losses())
    first.step(3, torch.tensor(7.0))
    assert len(state.losses) == 3  # a saved state does not change
    second, lines = make(state)
    for step in range(3, 6):
        second.step(step, torch.tensor(1 / (step + 3)))
    whole.evaluation(6, 1.0)
    second.evaluation(6, 1.0)
    assert lines[-1]["train_loss"] == expected[-1]["train_loss"]
    assert second.losses() == []
    assert second.seconds > state.seconds


def test_losses_of_skipped_steps_are_left_out():
    progress, _ = make()
    for loss in (1.0, math.nan, 3.0, math.inf):
        progress.step(0, torch.tensor(loss))
    assert progress.losses() == [1.0, 3.0]
