"""What happens when the loss or a gradient of a step is NaN or infinite: `--nan stop` or `skip`."""

import math
from typing import Literal

import torch

from .. import UserError
from . import distributed


class NonFinitePolicy:
    """Raises for, or skips and counts, the steps whose loss or gradients are not finite."""

    def __init__(self, mode: Literal["stop", "skip"], rows: int):
        self.stops, self.rows = mode == "stop", rows  # rows of the data in a step
        self.skipped = 0

    def handle(self, step: int, loss: float, bad_gradients: bool, count: int = 1) -> None:
        """`count` steps were not finite, `step` the last: raise UserError or print a line."""
        message = (
            f"step {step}: the loss is {loss:.4g} and the gradients are "
            f"{'not finite' if bad_gradients else 'finite'}, "
            f"on rows {step * self.rows} to {(step + 1) * self.rows - 1}"
        )
        if self.stops:
            raise UserError(
                f"{message}; the run's last checkpoint is intact: continue from it with --resume "
                "and a lower --learning-rate, or with --nan skip"
            )
        self.skipped += count
        print(f"{message}; skipped ({self.skipped} skipped steps in total)", flush=True)


class NonFiniteMonitor:
    """Counts steps that are not finite on the device, without the host waiting for a step.

    The optimizers read `found_inf` () and leave the update out where it is not 0.
    """

    def __init__(self, device: torch.device, policy: NonFinitePolicy):
        self.policy = policy
        self.found_inf = torch.zeros((), device=device)
        # steps that were not finite since the last check, and of the last: its number, loss, norm
        self._count, self._step = torch.zeros(2, dtype=torch.int64, device=device)
        self._values = torch.zeros(2, dtype=torch.float64, device=device)

    def update(self, step: torch.Tensor, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Set `found_inf`, and count the step, if its loss () or gradients' norm () is not finite.

        If the run stops at such a step, every later update is left out too, so that the weights
        stay what they were until the host reads this.
        """
        # NaN if one of them is NaN or infinite, on any rank; each operation is a kernel
        found = distributed.all_reduce_sum(loss * 0 + norm * 0) != 0
        if self.policy.stops:
            stopped = self._count > 0
            self.found_inf.copy_(found | stopped)
            found = found & ~stopped
        else:
            self.found_inf.copy_(found)
        torch.where(found, step, self._step, out=self._step)
        torch.where(found, torch.stack([loss, norm]), self._values, out=self._values)
        self._count += found

    def check(self) -> None:
        """Tell the policy about the steps since the last check. Waits for the device."""
        if count := int(self._count):
            self._count.zero_()
            loss, norm = self._values.tolist()
            self.policy.handle(int(self._step), loss, not math.isfinite(norm), count)
