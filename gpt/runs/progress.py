"""How far a run is: its clock, its lines or its bar, its metrics. Losses are read once a line."""

import contextlib
import math
import sys
import time

import torch
from tqdm import tqdm

from gpt import hardware
from gpt.config.train import TrainConfig
from gpt.runs.metrics import Record
from gpt.training import distributed


class Progress:
    """Counts steps and seconds of training, evaluation and saving left out."""

    def __init__(
        self,
        record: Record,
        config: TrainConfig,
        device: torch.device,
        reached: dict,
        *,
        tokens_per_step: int,
        flops_per_step: float,
    ):
        """`reached` is where the run begins or goes on: "step", and what `state` gave there."""
        self.record, self.config, self.device = record, config, device
        self.seconds = reached["seconds"]  # of training, earlier parts of the run included
        self.tokens_per_step = tokens_per_step
        self.flops_per_step = flops_per_step
        self.peak_flops = hardware.peak_flops(device)
        self.first_step, self.first_seconds = reached["step"], self.seconds
        self._unlogged = 0  # steps since the last line
        self._losses: list[float] = list(reached["losses"])  # since the last evaluation
        self._unread: list[torch.Tensor] = []  # the latest of them, still on the device
        self._since = time.perf_counter()
        self.bar = tqdm(
            total=config.max_iters,
            initial=self.first_step,
            unit="step",
            disable=not (sys.stderr.isatty() and distributed.is_main()),
        )

    def step(self, step: int, loss: torch.Tensor) -> None:
        """Step `step` (counted from 0) was taken with that loss ()."""
        self._unread.append(loss)
        self._unlogged += 1
        self.bar.update()
        if (step + 1) % self.config.log_interval == 0:
            self._line(step + 1, distributed.mean(loss).item())  # waits for the device

    def _line(self, iteration: int, loss: float) -> None:
        seconds = self._lap() / self._unlogged
        self._unlogged = 0
        tokens_per_second = self.tokens_per_step / seconds
        self.record.log(step=iteration, loss=loss, milliseconds=1e3 * seconds, seconds=self.seconds)
        self.bar.set_postfix_str(f"loss {loss:.4f}, {tokens_per_second:,.0f} tok/s")
        if self.bar.disable:
            utilisation = self.flops_per_step / seconds / self.peak_flops if self.peak_flops else 0
            mfu = f"mfu {100 * utilisation:.2f}%, " if utilisation else ""
            print(
                f"iter {iteration}: loss {loss:.4f}, time {1e3 * seconds:.2f}ms, {mfu}"
                f"{tokens_per_second:,.0f} tok/s",
                flush=True,
            )

    def evaluation(self, step: int, val_loss: float, said: str = "", **scores: float) -> None:
        """The model that took `step` steps has that loss, and scores, on the validation split.

        `said` is a sample of its text; it is for the record.
        """
        losses = self.state()["losses"]
        train_loss = {"train_loss": sum(losses) / len(losses)} if losses else {}
        values = {**train_loss, "val_loss": val_loss, **scores}
        sample = {"sample": said} if said else {}
        self.record.log(step=step, **values, seconds=self.seconds, **sample)
        words = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items()]
        self._losses = []
        self.bar.write(f"step {step}: {', '.join(words)}", file=sys.stdout)

    def state(self) -> dict:
        """What a checkpoint holds of it; losses of skipped steps are not among them."""
        if self._unread:
            unread = distributed.mean(torch.stack(self._unread)).tolist()
            self._losses += [loss for loss in unread if math.isfinite(loss)]
            self._unread = []
        return {"seconds": self.seconds, "losses": list(self._losses)}

    @contextlib.contextmanager
    def paused(self):
        """What is done inside does not count as training."""
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
        """The mean over this part of the run, which has come to `step`."""
        seconds = self.seconds - self.first_seconds
        return (step - self.first_step) * self.tokens_per_step / seconds if seconds else 0.0
