"""The residual stream between two blocks: what is there, and the branch still to be added to it.

A block of the lecture ends with `x + dropout(branch)`, and the next one begins with a norm of that
sum. Where the two are handed on apart, one operation does both (`add_layer_norm` of `kernels.Ops`).
"""

from typing import NamedTuple

import torch
import torch.nn as nn
from torch.nn import functional as F


class Residual(NamedTuple):
    """x + dropout(branch), not yet added: x and branch are (B, T, C)."""

    x: torch.Tensor
    branch: torch.Tensor
    dropout_p: float


def total(stream: torch.Tensor | Residual) -> torch.Tensor:
    """The residual stream as one tensor (B, T, C)."""
    if isinstance(stream, torch.Tensor):
        return stream
    return stream.x + F.dropout(stream.branch, stream.dropout_p)


class Total(nn.Module):
    """`total` as a module, to end a row of blocks with."""

    def forward(self, stream):
        return total(stream)
