"""The learning rate over the steps of a run."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from gpt.config.train import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """The learning rate at a step, as a fraction of the configured one.

    As in nanoGPT: (step + 1) / (warmup_steps + 1) during warm-up, then a cosine from 1 down to
    `lowest` at step `decay_steps`, and constant afterwards. `decay_steps` = 0 keeps it at 1.
    """

    warmup_steps: int = 0
    decay_steps: int = 0
    lowest: float = 0.0

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if not self.decay_steps:
            return 1.0
        progress = (step - self.warmup_steps) / max(1, self.decay_steps - self.warmup_steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
        return self.lowest + cosine * (1.0 - self.lowest)


def schedule_of(config: TrainConfig) -> Schedule:
    """The schedule that a run's options describe."""
    if not config.decay_lr:
        return Schedule(config.warmup_iters)
    decay_steps = config.lr_decay_iters or config.max_iters
    lowest = config.min_lr / config.learning_rate
    return Schedule(config.warmup_iters, max(1, decay_steps), lowest)


def set_learning_rates(optimizers: Iterable[torch.optim.Optimizer], scale: float) -> None:
    """Set every learning rate to `scale` times its initial value, in place if it is a tensor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(group["initial_lr"] * scale)
            else:
                group["lr"] = group["initial_lr"] * scale
