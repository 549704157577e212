"""The learning rate over the steps of a run."""

import math
from collections.abc import Callable, Iterable

import torch

from gpt.config.train import TrainConfig


def schedule_of(config: TrainConfig) -> Callable[[int], float]:
    """A function: step -> the learning rate as a fraction of the configured one.

    As in nanoGPT: (step + 1) / (warmup_iters + 1) during warm-up; then, with --decay-lr, a cosine
    from 1 down to min_lr / learning_rate at lr_decay_iters, by default max_iters, and constant
    afterwards.
    """
    warmup = config.warmup_iters
    length = max(1, (config.lr_decay_iters or config.max_iters) - warmup)

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if not config.decay_lr:
            return 1.0
        lowest = config.min_lr / config.learning_rate
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / length)))
        return lowest + cosine * (1.0 - lowest)

    return scale


def set_learning_rates(optimizers: Iterable[torch.optim.Optimizer], scale: float) -> None:
    """Set every learning rate to `scale` times its initial value, in place if it is a tensor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(group["initial_lr"] * scale)
            else:
                group["lr"] = group["initial_lr"] * scale
