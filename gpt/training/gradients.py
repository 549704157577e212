"""The gradients of one training step: batches, forward and backward passes, clipping."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn

from ..config.model import IGNORE_INDEX
from ..data.dataset import Dataset
from . import distributed
from .precision import Precision


class Stopped(Exception):
    """A step or an evaluation has ended early, on all ranks."""


def stop_if(must_stop: Callable[[], bool]) -> None:
    """Raise Stopped if it must on any rank; all ranks call this together."""
    if any(distributed.any_rank(must_stop())):
        raise Stopped


@dataclass(frozen=True)
class BatchPlan:
    """Which rows of the data a training step sees, on this rank.

    Step s of a run sees the rows s * R to (s + 1) * R - 1 of the data, R = `rows`: N ranks together
    see what a single one would see with N times the batch size.
    """

    batch_size: int  # sequences in one forward pass
    block_size: int  # tokens in a sequence
    passes: int = 1  # forward and backward passes accumulated into a step
    seed: int = 0

    @property
    def rows(self) -> int:
        """Rows of a step, over all passes and ranks."""
        return self.passes * distributed.world_size() * self.batch_size

    @property
    def tokens_per_step(self) -> int:
        return self.rows * self.block_size

    def first_row(self, step, index: int):
        """The first row of pass `index`; `step` is a number or a tensor () on the device."""
        batch = (step * self.passes + index) * distributed.world_size() + distributed.rank()
        return batch * self.batch_size


@dataclass
class Gradients:
    """Computes the gradients of a step and leaves them, clipped, in the parameters."""

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    data: Dataset
    plan: BatchPlan
    precision: Precision
    grad_clip: float = 0.0  # largest norm of all gradients together; 0 disables it
    must_stop: Callable[[], bool] | None = None  # asked between the passes, which raises Stopped

    def __post_init__(self) -> None:
        self.parameters = list(self.model.parameters())  # the walk through all modules, once
        # 16-bit copies of weights by name, with which the forward pass computes instead
        self.copies: dict[str, torch.Tensor] = {}
        # an optimizer that clips as it updates, if it holds all parameters
        alone = len(self.optimizers) == 1 and hasattr(self.optimizers[0], "clip_grad_norm")
        self.clipping_optimizer: Any = self.optimizers[0] if alone else None

    def __call__(self, step) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss () and the norm () of the gradients before they are clipped.

        `step` is a number, or a tensor () on the device. Ranks average the loss.
        """
        plan, scaler = self.plan, self.precision.scaler
        rows = (plan.first_row(step, index) for index in range(plan.passes))
        sizes = plan.batch_size, plan.block_size
        batches = [self.data.batch(plan.seed, first_row, *sizes) for first_row in rows]
        counts, losses, world = [], [], distributed.world_size()
        if len(batches) * world > 1:  # passes and ranks may differ in the number of targets
            counts = [(y != IGNORE_INDEX).sum() for _, y in batches]
            total = distributed.all_reduce_sum(torch.stack(counts).sum())
        for index, (x, y) in enumerate(batches):
            if index and self.must_stop is not None:
                stop_if(self.must_stop)
            is_last = index == plan.passes - 1
            with contextlib.nullcontext() if is_last else distributed.no_sync(self.model):
                with self.precision.autocast():
                    loss = self.loss(x, y)
                if counts:  # its part of the mean over all targets; ranks average their parts
                    loss = loss * (world * counts[index]) / total
                    loss = loss.masked_fill(counts[index] == 0, 0.0)  # PyTorch's mean is NaN
                scaler.scale(loss).backward()
            losses.append(loss.detach())
        for optimizer in self.optimizers:
            scaler.unscale_(optimizer)
        return functools.reduce(torch.add, losses), self.clip()

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.copies:
            return torch.func.functional_call(self.model, self.copies, (x, y))[1]
        return self.model(x, y)[1]

    def clip(self) -> torch.Tensor:
        """Clip the gradients if `grad_clip` asks for it. Return their norm before that."""
        if self.clipping_optimizer is not None:  # the update scales the gradients as it reads them
            return self.clipping_optimizer.clip_grad_norm(self.grad_clip or math.inf)
        gradients = [weight.grad for weight in self.parameters if weight.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.grad_clip:
            nn.utils.clip_grads_with_norm_(self.parameters, self.grad_clip, norm)
        return norm

    def clear(self) -> None:
        """Free all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        for copy in self.copies.values():
            copy.grad = None
