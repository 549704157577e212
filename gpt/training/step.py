"""One training step: gradients, then the update; eagerly or as one CUDA graph."""

import math
from collections.abc import Callable

import torch
import torch.nn as nn

from gpt.training import distributed
from gpt.training.cuda_graph import CaptureError, GraphedFunction
from gpt.training.gradients import Gradients
from gpt.training.non_finite import NonFiniteMonitor, NonFinitePolicy
from gpt.training.schedule import Schedule, set_learning_rates


class EagerStep:
    """Call it with the number of a step: it trains the model by that step and returns the loss ().

    The host reads the loss of every step and decides whether to update.
    """

    def __init__(self, gradients: Gradients, schedule: Schedule, policy: NonFinitePolicy):
        self.gradients, self.schedule, self.policy = gradients, schedule, policy
        self.optimizers = gradients.optimizers

    def __call__(self, step: int) -> torch.Tensor:
        set_learning_rates(self.optimizers, self.schedule(step))
        scaler = self.gradients.precision.scaler
        loss, bad = self.gradients(step)
        if self._is_finite(step, loss.item(), bool(bad.item())):  # waits for the device
            for optimizer in self.optimizers:
                scaler.step(optimizer)
        scaler.update()
        self.gradients.clear()
        return loss

    def _is_finite(self, step: int, loss: float, bad: bool) -> bool:
        if not distributed.any_rank(bad or not math.isfinite(loss)):
            return True
        if self.gradients.precision.scaler.is_enabled() and math.isfinite(loss):
            return False  # the loss scale was too large; the scaler will lower it
        self.policy.handle(step, loss, bad)
        return False

    def check(self) -> None:
        """Before a checkpoint: raise NonFiniteError, or count what was skipped, if not done yet."""

    def release(self) -> None:
        """Free all memory that the step holds besides the model and the optimizers."""
        self.gradients.clear()


class DeviceStep(EagerStep):
    """The same without waiting for the device: the host runs ahead of it.

    The optimizers leave out an update that is not finite, by `found_inf`; the host finds out in
    `check`, every `check_interval` steps, when it reads a loss anyway.
    """

    def __init__(
        self,
        gradients: Gradients,
        schedule: Schedule,
        policy: NonFinitePolicy,
        check_interval: int = 1,
    ):
        super().__init__(gradients, schedule, policy)
        device = gradients.precision.device
        self.check_interval = check_interval
        self.number = torch.zeros((), dtype=torch.int64, device=device)  # of the step
        self.monitor = NonFiniteMonitor(device, policy.stops)
        for optimizer in self.optimizers:
            optimizer.found_inf = self.monitor.found_inf  # type: ignore[attr-defined]

    def __call__(self, step: int) -> torch.Tensor:
        set_learning_rates(self.optimizers, self.schedule(step))
        self.number.fill_(step)
        loss = self.take(step)
        if (step + 1) % self.check_interval == 0:
            self.check()
        return loss

    def take(self, step: int) -> torch.Tensor:
        return self.run(step)

    def run(self, step: int | torch.Tensor) -> torch.Tensor:
        """Gradients and update of a step, given as a number or as a tensor () on the device."""
        loss, bad = self.gradients(step)
        self.monitor.update(self.number, loss, bad)
        for optimizer in self.optimizers:
            self.gradients.precision.scaler.step(optimizer)
        self.clear()
        return loss

    def clear(self) -> None:
        self.gradients.clear()

    def check(self) -> None:
        bad = self.monitor.read()
        if bad.number:
            self.policy.handle(bad.step, bad.loss, bad.bad_gradients, bad.number)


class GraphStep(DeviceStep):
    """The same as one CUDA graph: one launch, however many kernels a step has.

    Everything that changes from step to step lies on the device: the number of the step, from which
    the batch follows, the learning rates, and the state of the generator that dropout draws its
    seeds from. The capture makes the gradients in the graph's own memory and each replay writes
    them anew: none is filled with zeros, and none is accumulated into.

    The linear layers of the blocks compute with 16-bit copies of their weights, which the optimizer
    rewrites as it updates: nothing is cast, and the rounding is that of autocast.
    """

    def __init__(
        self,
        gradients: Gradients,
        schedule: Schedule,
        policy: NonFinitePolicy,
        check_interval: int = 1,
        *,
        copies_weights: bool = True,  # False if blocks are compiled or recomputed in backward
        on_failure: Callable[[CaptureError], None] | None = None,
    ):
        super().__init__(gradients, schedule, policy, check_interval)
        self.on_failure = on_failure or _print_failure
        self.graphed = GraphedFunction(
            lambda: self.run(self.number), self._on_failure, before=self._send
        )
        copies = weight_copies(gradients) if copies_weights else {}
        if copies:
            weights = dict(gradients.model.named_parameters())
            follow = {weights[name]: copy for name, copy in copies.items()}
            gradients.clipping_optimizer.follow(follow)  # type: ignore[union-attr]
            gradients.copies = copies

    def take(self, step: int) -> torch.Tensor:
        return self.graphed().clone()  # the next replay overwrites it

    def clear(self) -> None:
        if not self.graphed.is_capturing:  # the replays write the gradients of the capture anew
            super().clear()

    def release(self) -> None:
        self.graphed.release()
        super().release()

    def _send(self) -> None:
        """Write the learning rates, and the addresses of the gradients, to the device."""
        for optimizer in self.optimizers:
            if hasattr(optimizer, "send"):
                optimizer.send()

    def _on_failure(self, error: CaptureError) -> None:
        self.gradients.clear()
        self.on_failure(error)


def _print_failure(error: CaptureError) -> None:
    print(f"the training step cannot be captured as a CUDA graph ({error}); it runs eagerly")


def weight_copies(gradients: Gradients) -> dict[str, torch.Tensor]:
    """16-bit copies of the blocks' weights by name, if the optimizer can keep them up to date.

    There are none when several passes are accumulated: gradients in 16 bits must not be summed.
    """
    dtype, optimizer = gradients.precision.dtype, gradients.clipping_optimizer
    if gradients.plan.passes > 1 or dtype == torch.float32 or not hasattr(optimizer, "follow"):
        return {}
    return {
        f"{name}.{key}": weight.detach().to(dtype).requires_grad_()
        for name, module in gradients.model.named_modules()
        if name.startswith("blocks.") and isinstance(module, nn.Linear)
        for key, weight in module.named_parameters(recurse=False)
        if key == "weight" or getattr(module, "adds_bias", True)
    }
