"""The progress of a run: its clock, its progress bar or lines, and its metrics."""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from .. import hardware
from ..training import distributed
from .metrics import MetricsLog
from .run_state import RunState


@dataclass
class Progress:
    """Counts steps, and seconds of training without evaluation and saving.

    A loss stays on the device unless its step ends a log interval.
    """

    log: MetricsLog | None  # None on all ranks but the main one
    device: torch.device
    first: RunState  # where the run begins or resumes
    max_iters: int
    log_interval: int
    tokens_per_step: int
    flops_per_step: float

    def __post_init__(self) -> None:
        self.peak_flops = hardware.peak_flops(self.device)
        self.seconds = self.first.seconds  # earlier parts of the run included
        self.seconds_per_step = 0.0  # at the last line
        self._unlogged = 0  # steps since then
        self._since = time.perf_counter()
        hidden = not (sys.stderr.isatty() and distributed.is_main())
        self.bar = tqdm(total=self.max_iters, initial=self.first.step, unit="step", disable=hidden)

    def step(self, step: int, loss: torch.Tensor) -> None:
        """Training step `step`, counted from 0, had this loss ()."""
        self._unlogged += 1
        self.bar.update()
        if (step + 1) % self.log_interval:
            return
        value = distributed.all_reduce_mean(loss).item()  # waits for the device
        self.seconds_per_step = seconds = self._lap() / self._unlogged
        self._unlogged, ms = 0, 1e3 * seconds
        if self.log:
            self.log.log(step=step + 1, loss=value, milliseconds=ms, seconds=self.seconds)
        speed = f"{self.tokens_per_step / seconds:,.0f} tok/s"
        self.bar.set_postfix_str(f"loss {value:.4f}, {speed}")
        if self.bar.disable:
            flops, peak = self.flops_per_step / seconds, self.peak_flops
            mfu = f"mfu {100 * flops / peak:.2f}%, " if peak else ""
            print(f"iter {step + 1}: loss {value:.4f}, time {ms:.2f}ms, {mfu}{speed}", flush=True)

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Print and log the losses and scores of the model after `step` steps."""
        if self.log:
            self.log.log(step=step, **values, seconds=self.seconds)
        self.bar.write(f"step {step}: {in_words(values)}", file=sys.stdout)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count as training."""
        hardware.synchronise(self.device)
        self._lap()
        self._unlogged = 0
        yield
        hardware.synchronise(self.device)
        self._since = time.perf_counter()

    def _lap(self) -> float:
        now = time.perf_counter()
        lap, self._since = now - self._since, now
        self.seconds += lap
        return lap

    def tokens_per_second(self, step: int) -> float:
        """The mean over this part of the run, which has reached `step`."""
        seconds = self.seconds - self.first.seconds
        return (step - self.first.step) * self.tokens_per_step / seconds if seconds else 0.0


def in_words(values: dict[str, float]) -> str:
    """{"train_loss": 2.5, "val_loss": 2.6} -> "train loss 2.5000, val loss 2.6000"."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
