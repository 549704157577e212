"""The lines that people grep, the clock, and what a checkpoint holds of both."""

import math
import re
import time

import pytest
import torch

from gpt.config.train import TrainConfig
from gpt.runs.progress import Progress

CONFIG = TrainConfig(max_iters=10, log_interval=2)
BEGINNING = {"step": 0, "seconds": 0.0, "losses": []}


class Kept:
    def __init__(self):
        self.lines = []

    def log(self, **values):
        self.lines.append(values)


def make(reached=BEGINNING, **options):
    options = {"tokens_per_step": 100, "flops_per_step": 1e6, **options}
    return Progress(Kept(), CONFIG, torch.device("cpu"), dict(reached), **options)


def test_nanogpt_s_lines(capsys):
    progress = make()
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
    kept = progress.record.lines
    seconds = [line.pop("seconds") for line in kept]
    assert seconds == sorted(seconds)
    assert all(line.pop("milliseconds") > 0 for line in kept if "loss" in line)
    assert kept == [
        {"step": 0, "val_loss": 4.0},
        {"step": 2, "loss": 2.0},
        {"step": 4, "loss": 0.0},
        {"step": 4, "train_loss": 1.5, "val_loss": 2.25},
    ]


def test_a_pause_is_no_training():
    progress = make()
    progress.step(0, torch.tensor(1.0))
    with progress.paused():
        time.sleep(0.3)
    progress.step(1, torch.tensor(1.0))
    assert progress.seconds < 0.2
    assert progress.tokens_per_second(2) == pytest.approx(200 / progress.seconds)


def test_a_stopped_run_s_losses_go_on():
    whole, first = make(), make()
    for step in range(6):
        whole.step(step, torch.tensor(1 / (step + 3)))
    for step in range(3):
        first.step(step, torch.tensor(1 / (step + 3)))
    state = first.state()
    first.step(3, torch.tensor(7.0))
    assert len(state["losses"]) == 3  # what was saved does not change any more
    second = make({"step": 3, **state})
    for step in range(3, 6):
        second.step(step, torch.tensor(1 / (step + 3)))
    whole.evaluation(6, 1.0)
    second.evaluation(6, 1.0)
    assert second.record.lines[-1]["train_loss"] == whole.record.lines[-1]["train_loss"]
    assert second.state()["losses"] == []
    assert second.seconds > state["seconds"]


def test_losses_of_skipped_steps_do_not_count():
    progress = make()
    for loss in (1.0, math.nan, 3.0, math.inf):
        progress.step(0, torch.tensor(loss))
    assert progress.state()["losses"] == [1.0, 3.0]
