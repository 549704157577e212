"""The feed-forward of a block: a product up to F channels, an activation, a product down to C.

Forward:   pre = x w1^T + b1,  hidden = f(pre),  y = hidden w2^T + b2
Backward:  dpre = (dy w2) * f'(pre)    dw2 = dy^T hidden    db2 = sum of dy over rows
           dx = dpre w1                dw1 = dpre^T x       db1 = sum of dpre over rows

Decisions:
- Two of the six products have an epilogue: bias and f, and f'. `launch.route` chooses how each is
  computed: "gemm" applies the epilogue to each tile (`kernels.matmul.gemm`), "cublas" is PyTorch's
  product and one pass over memory. The other products are PyTorch's; with an epilogue, the one
  down to C was slower on an H200.
- cuBLAS adds biases, and applies a ReLU after a bias, before it rounds and at no cost.
- hidden is saved for dw2, and pre as well if f' needs it. Recomputing hidden would halve the memory
  that a GELU saves, but write it again: 2 bytes per element in 16 bits, besides the 22 that the
  "cublas" route moves. A ReLU, whose f' needs only hidden, saves nothing else.
"""

import torch
from torch.nn.functional import linear

from ..common.dtypes import autocast_dtype
from ..common.launch import route
from ..common.operands import check_operands
from ..common.operator import Operation
from ..common.sums import sum_shares
from . import gemm
from .activation import ACTIVATIONS, FROM_HIDDEN, activation_backward, activation_forward


class FeedForward(Operation):
    """x (M, C), w1 (F, C), b1 (F,) or None, w2 (C, F), b2 (C,) or None -> y (M, C)."""

    schema = "feed_forward(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str activation)"
    cast = 5

    @staticmethod
    def empty(x, w1, b1, w2, b2, activation):
        hidden = x.new_empty(x.shape[0], w1.shape[0])
        pre = None if activation in FROM_HIDDEN else torch.empty_like(hidden)
        return torch.empty_like(x), hidden, pre

    @staticmethod
    def forward(x, w1, b1, w2, b2, activation):
        way = route(x, w1.shape[0], activation).up
        hidden, pre = _up(x, w1, b1, activation, way)  # (M, F) each
        return linear(hidden, w2, b2), hidden, pre

    @staticmethod
    def saved(x, w1, b1, w2, b2, activation, y, hidden, pre):
        return x, w1, b1, w2, b2, hidden, pre

    @staticmethod
    def backward(gradients, saved, needs, activation):
        (dy,), (x, w1, _, w2, _, hidden, pre) = gradients, saved
        needs_x, needs_w1, needs_b1, needs_w2, needs_b2 = needs
        dy = dy.contiguous()
        dw2 = dy.T @ hidden if needs_w2 else None
        db2 = dy.sum(0) if needs_b2 else None
        if needs_x or needs_w1 or needs_b1:
            way = route(x, w1.shape[0], activation).gradient
            dpre, sums = _gradient(dy, w2, hidden if pre is None else pre, activation, way)
        dw1 = dpre.T @ x if needs_w1 else None
        db1 = sum_shares(sums, x.new_empty(sums.shape[1])) if needs_b1 else None
        dx = dpre @ w1 if needs_x else None
        return dx, dw1, db1, dw2, db2


def _up(x, w1, b1, activation, way):
    """hidden (M, F), and pre, or None if f' is computed from hidden."""
    if way == "gemm":
        return gemm.linear_activation(x, w1, b1, activation)
    if activation == "relu" and b1 is not None:
        return torch._addmm_activation(b1, x, w1.t()), None
    pre = linear(x, w1, b1)
    if activation in FROM_HIDDEN:
        return activation_forward(pre, activation, out=pre), None
    return activation_forward(pre, activation), pre


def _gradient(dy, w2, kept, activation, way):
    """dpre (M, F), and sums of its columns over blocks of rows (blocks, F)."""
    if way == "gemm":
        return gemm.gradient_of_argument(dy, w2, kept, activation)
    dhidden = dy @ w2
    return activation_backward(dhidden, kept, activation, out=dhidden)


def feed_forward(
    x: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    *,
    activation: str = "gelu",
) -> torch.Tensor:
    """f(x w1^T + b1) w2^T + b2, where f is relu, gelu, gelu_tanh or relu_squared.

    x (..., C), w1 (F, C), b1 (F,) or None, w2 (C, F), b2 (C,) or None -> (..., C); one dtype, or
    autocast, which casts all as PyTorch's linear layer does. Raises ValueError if arguments do not
    fit.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"feed_forward: activation {activation!r} is not supported; choose one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    x, w1, w2 = _cast(x), _cast(w1), _cast(w2)
    b1, b2 = (None if bias is None else _cast(bias) for bias in (b1, b2))
    form = "x (..., C), w1 (F, C), b1 (F,), w2 (C, F), b2 (C,)"
    check_operands("feed_forward", form, x, w1, b1, w2, b2, one_dtype=True)
    rows = x.view(-1, x.shape[-1])  # (M, C)
    return FeedForward.apply(rows, w1, b1, w2, b2, activation).view(x.shape)


def _cast(operand):
    """A contiguous operand in the dtype of autocast."""
    return operand.to(autocast_dtype(operand) or operand.dtype).contiguous()
