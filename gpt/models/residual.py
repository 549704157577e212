"""The residual stream between two blocks: what is there, and the branch still to be added to it.

A block of the lecture ends with `x + dropout(linear(...))`, and the next one begins with a norm of
that sum. Where x, the linear layer's product and its bias are handed on apart, one operation adds,
drops and normalises (`add_layer_norm` of `kernels.Ops`).
"""

from typing import NamedTuple

import torch
import torch.nn as nn
from torch.nn import functional as F


class Residual(NamedTuple):
    """x + dropout(branch + bias), not yet added."""

    x: torch.Tensor  # (B, T, C)
    branch: torch.Tensor  # (B, T, C)
    bias: torch.Tensor | None  # (C,)
    dropout_p: float


def total(stream: torch.Tensor | Residual) -> torch.Tensor:
    """The residual stream as one tensor (B, T, C)."""
    if isinstance(stream, torch.Tensor):
        return stream
    x, branch, bias, dropout_p = stream
    if bias is not None:
        branch = branch + bias.to(branch.dtype)
    return x + F.dropout(branch, dropout_p)


class IntoStream(nn.Linear):
    """A linear layer back into the residual stream, which leaves its bias to be added there."""

    adds_bias = False

    def forward(self, x):
        return F.linear(x, self.weight)


class Total(nn.Module):
    """`total` as a module, to end a row of blocks with."""

    def forward(self, stream):
        return total(stream)
