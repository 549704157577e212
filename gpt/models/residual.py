"""The residual stream between two layers, and the work that a layer leaves to the next one.

The lecture writes x = x + dropout(linear(h)), and begins the next line with norm(x). The kernels
join these operations differently, so a module may return unfinished work in place of a tensor:

    (B, T, C)  whole contexts: `Residual` is a sum that the next norm computes (`add_layer_norm`)
    (R, C)     decoding, one token per row: `Product` is a linear layer that the next sum computes,
               `Normalised` a norm that the next linear layer computes (both by `decode_linear`)
"""

from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch.nn import functional as F


class Product(NamedTuple):
    """linear(x), bias included, not yet computed."""

    x: torch.Tensor  # (R, K)
    linear: nn.Module


class Residual(NamedTuple):
    """x + dropout(branch + bias), not yet added; or x + branch where the branch is a `Product`."""

    x: torch.Tensor | None  # (B, T, C) or (R, C); None for 0
    branch: torch.Tensor | Product
    bias: torch.Tensor | None  # (C,)
    dropout_p: float
    seed: torch.Tensor | None  # () of the dropout


class Normalised(NamedTuple):
    """norm(x), not yet computed."""

    x: torch.Tensor  # (R, C)
    norm: nn.Module


class Linear(nn.Linear):
    """A linear layer that computes the norm before it, and an activation, while decoding."""

    def forward(self, x: torch.Tensor | Normalised, activation: str | None = None) -> torch.Tensor:
        if isinstance(x, Normalised):
            return decode_linear(x.norm.ops, x.x, self, norm=x.norm, activation=activation)
        return F.linear(x, self.weight, self.bias)

    @property
    def stored(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight as it is kept in memory, and the scale of each row if it is int8."""
        return self.weight, None


class IntoStream(Linear):
    """A linear layer back into the residual stream, which leaves its bias to be added there."""

    adds_bias = False

    def forward(self, x: torch.Tensor) -> torch.Tensor | Product:  # type: ignore[override]
        return Product(x, self) if x.dim() == 2 else F.linear(x, self.weight)


def decode_linear(ops, x, linear, *, norm=None, activation=None, residual=None) -> torch.Tensor:
    """residual + activation(linear(norm(x))) for one token of each row, as one operation."""
    weight, scale = linear.stored
    options: dict[str, Any] = {"scale": scale, "activation": activation, "residual": residual}
    options["constant_weights"] = True  # the kernel before is one of the decode step
    if norm is not None:
        options |= {"norm": norm.kind, "norm_weight": norm.weight, "norm_bias": norm.bias}
        options["eps"] = norm.eps
    return ops.decode_linear(x, weight, linear.bias, **options)


def total(stream: torch.Tensor | Residual) -> torch.Tensor:
    """The residual stream of whole contexts as one tensor (B, T, C)."""
    if isinstance(stream, torch.Tensor):
        return stream
    x, branch, bias, dropout_p, _ = stream
    assert isinstance(branch, torch.Tensor)  # the next norm adds a `Product`
    if bias is not None:
        branch = branch + bias.to(branch.dtype)
    branch = F.dropout(branch, dropout_p)
    return branch if x is None else x + branch
