"""One training step: gradients, then the update; eagerly or as one CUDA graph."""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn

from .. import UserError
from . import distributed
from .cuda_graph import GraphedFunction, print_failure
from .gradients import Gradients
from .non_finite import NonFiniteMonitor, NonFinitePolicy
from .optimizers import Schedule, set_learning_rates


@dataclass
class EagerStep:
    """Call it with the number of a step: it trains the model by that step and returns the loss ().

    The host reads the loss of every step and decides whether to update.
    """

    gradients: Gradients
    schedule: Schedule
    policy: NonFinitePolicy
    check_interval: int

    def __call__(self, step: int) -> torch.Tensor:
        set_learning_rates(self.gradients.optimizers, self.schedule(step))
        scaler = self.gradients.precision.scaler
        loss, norm = self.gradients(step)
        if self._is_finite(step, loss.item(), norm.item()):  # waits for the device
            for optimizer in self.gradients.optimizers:
                scaler.step(optimizer)
        scaler.update()
        self.gradients.clear()
        return loss

    def _is_finite(self, step: int, loss: float, norm: float) -> bool:
        bad = not math.isfinite(norm)
        if not any(distributed.any_rank(bad or not math.isfinite(loss))):
            return True
        if self.gradients.precision.scaler.is_enabled() and math.isfinite(loss):
            return False  # the loss scale was too large; the scaler will lower it
        self.policy.handle(step, loss, bad)
        return False

    def check(self) -> None:
        """Before a checkpoint: raise UserError, or count what was skipped, if not done yet."""


@dataclass
class DeviceStep(EagerStep):
    """The same without waiting for the device: the host runs ahead of it.

    The optimizers leave out an update that is not finite, by `found_inf`; the host finds out in
    `check`, every `check_interval` steps, when it reads a loss anyway.
    """

    def __post_init__(self) -> None:
        device = self.gradients.precision.device
        self.number = torch.zeros((), dtype=torch.int64, device=device)  # of the step
        self.monitor = NonFiniteMonitor(device, self.policy)
        for optimizer in self.gradients.optimizers:
            optimizer.found_inf = self.monitor.found_inf  # type: ignore[attr-defined]

    def __call__(self, step: int) -> torch.Tensor:
        set_learning_rates(self.gradients.optimizers, self.schedule(step))
        self.number.fill_(step)
        loss = self.take(step)
        if (step + 1) % self.check_interval == 0:
            self.check()
        return loss

    def take(self, step: int) -> torch.Tensor:
        return self.run(step)

    def run(self, step: int | torch.Tensor) -> torch.Tensor:
        """Gradients and update of a step, given as a number or as a tensor () on the device."""
        loss, norm = self.gradients(step)
        self.monitor.update(self.number, loss, norm)
        for optimizer in self.gradients.optimizers:
            self.gradients.precision.scaler.step(optimizer)
        self.clear()
        return loss

    def clear(self) -> None:
        self.gradients.clear()

    def check(self) -> None:
        self.monitor.check()


@dataclass
class GraphStep(DeviceStep):
    """The same as one CUDA graph: one launch, however many kernels a step has.

    Everything that changes from step to step lies on the device: the number of the step, from which
    the batch follows, the learning rates, and the state of the generator that dropout draws its
    seeds from. The capture makes the gradients in the graph's own memory and each replay writes
    them anew: none is filled with zeros, and none is accumulated into.
    """

    must_capture = False  # --step graph: raise UserError if the capture fails

    def __post_init__(self) -> None:
        super().__post_init__()
        self.graphed = GraphedFunction(
            lambda: self.run(self.number), "the training step", self._on_failure, before=self._send
        )

    def copy_weights(self) -> None:
        """Compute with 16-bit copies of the blocks' weights, which the optimizer rewrites.

        Nothing is cast then, and the rounding is that of autocast. No weight is copied if the
        optimizer cannot, or if passes are accumulated: gradients in 16 bits must not be summed.
        """
        gradients, dtype = self.gradients, self.gradients.precision.dtype
        optimizer = gradients.clipping_optimizer
        if gradients.plan.passes > 1 or dtype == torch.float32 or not hasattr(optimizer, "follow"):
            return
        weights = {
            f"{name}.{key}": weight
            for name, module in gradients.model.named_modules()
            if name.startswith("blocks.") and isinstance(module, nn.Linear)
            for key, weight in module.named_parameters(recurse=False)
            if key == "weight" or getattr(module, "adds_bias", True)
        }
        copies = {name: one.detach().to(dtype).requires_grad_() for name, one in weights.items()}
        optimizer.follow({weight: copies[name] for name, weight in weights.items()})
        gradients.copies = copies

    def take(self, step: int) -> torch.Tensor:
        return self.graphed().clone()  # the next replay overwrites it

    def clear(self) -> None:
        if not self.graphed.is_capturing:  # the replays write the gradients of the capture anew
            super().clear()

    def _send(self) -> None:
        """Write the learning rates, and the addresses of the gradients, to the device."""
        for optimizer in self.gradients.optimizers:
            if hasattr(optimizer, "send"):
                optimizer.send()

    def _on_failure(self, message: str) -> None:
        self.gradients.clear()
        if self.must_capture:
            raise UserError(f"--step graph: {message}; use --step eager")
        print_failure(message)
