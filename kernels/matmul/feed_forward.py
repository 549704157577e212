"""The feed-forward of a block: a product up to F channels, an activation, a product down to C.

Forward:   pre = x w1^T + b1,  hidden = f(pre),  y = dropout(hidden w2^T + b2)
Backward:  dz = dropout(dy)            dw2 = dz^T hidden    db2 = sum of dz over rows
           dpre = (dz w2) * f'(pre)    dw1 = dpre^T x       db1 = sum of dpre over rows
           dx = dpre w1

Dropout multiplies by keep / (1 - p) in forward and backward; the mask is a function of (seed, row,
column), see `kernels.common.philox`.

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
import triton
import triton.language as tl
from torch.nn.functional import linear

from ..common.dtypes import autocast_dtype, triton_accumulator
from ..common.launch import cdiv, launch, route, tile
from ..common.operands import check_operands
from ..common.operator import Operation
from ..common.philox import keep_in_rows, seed_of_call, threshold_and_scale
from ..common.shares import sum_shares
from . import gemm
from .activation import ACTIVATIONS, FROM_HIDDEN, activation_backward, activation_forward

STREAM = tl.constexpr(1)  # of Philox, so that other operations with the same seed drop others


@triton.jit
def dropout_kernel(
    x_ptr,  # (M, N)
    y_ptr,  # (M, N), may be x
    seed_ptr,  # ()
    M, N,
    THRESHOLD: tl.constexpr, SCALE: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_column = tl.program_id(1) * BLOCK_N
    column = first_column + tl.arange(0, BLOCK_N)
    element = row.to(tl.int64)[:, None] * N + column[None, :]
    inside = (row < M)[:, None] & (column < N)[None, :]
    x = tl.load(x_ptr + element, inside).to(ACC)
    keep = keep_in_rows(tl.load(seed_ptr), STREAM, row, first_column, THRESHOLD, BLOCK_N)
    tl.store(y_ptr + element, tl.where(keep, x * SCALE, 0.0), inside)


class FeedForward(Operation):
    """x (M, C), w1 (F, C), b1 (F,) or None, w2 (C, F), b2 (C,) or None -> y (M, C)."""

    schema = (
        "feed_forward(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? seed, "
        "str activation, float dropout_p)"
    )
    cast = 5

    @staticmethod
    def empty(x, w1, b1, w2, b2, seed, activation, dropout_p):
        hidden = x.new_empty(x.shape[0], w1.shape[0])
        pre = None if activation in FROM_HIDDEN else torch.empty_like(hidden)
        return torch.empty_like(x), hidden, pre

    @staticmethod
    def forward(x, w1, b1, w2, b2, seed, activation, dropout_p):
        hidden, pre = _up(x, w1, b1, activation, route(x, w1.shape[0], activation).up)  # (M, F) each
        y = linear(hidden, w2, b2)  # (M, C)
        return _dropped(y, seed, dropout_p, out=y), hidden, pre

    @staticmethod
    def saved(x, w1, b1, w2, b2, seed, activation, dropout_p, y, hidden, pre):
        return x, w1, b1, w2, b2, seed, hidden, pre

    @staticmethod
    def backward(gradients, saved, needs, activation, dropout_p):
        (dy,), (x, w1, _, w2, _, seed, hidden, pre) = gradients, saved
        needs_x, needs_w1, needs_b1, needs_w2, needs_b2, _ = needs
        dz = _dropped(dy.contiguous(), seed, dropout_p)
        dw2 = dz.T @ hidden if needs_w2 else None
        db2 = dz.sum(0) if needs_b2 else None
        if needs_x or needs_w1 or needs_b1:
            way = route(x, w1.shape[0], activation).gradient
            dpre, sums = _gradient(dz, w2, hidden if pre is None else pre, activation, way)
        dw1 = dpre.T @ x if needs_w1 else None
        db1 = sum_shares(sums, x.new_empty(sums.shape[1])) if needs_b1 else None
        dx = dpre @ w1 if needs_x else None
        return dx, dw1, db1, dw2, db2, None


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


def _gradient(dz, w2, kept, activation, way):
    """dpre (M, F), and sums of its columns over blocks of rows (blocks, F)."""
    if way == "gemm":
        return gemm.gradient_of_argument(dz, w2, kept, activation)
    dhidden = dz @ w2
    return activation_backward(dhidden, kept, activation, out=dhidden)


def _dropped(x, seed, dropout_p, out=None):  # (M, C)
    """dropout(x), or x itself without a seed; `out` may be x."""
    if seed is None:
        return x
    out = torch.empty_like(x) if out is None else out
    THRESHOLD, SCALE = threshold_and_scale(dropout_p)
    BLOCK_M, BLOCK_N, num_warps = tile("dropout", x.device)
    constants = {"THRESHOLD": THRESHOLD, "SCALE": SCALE, "ACC": triton_accumulator(x.dtype)}
    constants |= {"BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "num_warps": num_warps}
    grid = cdiv(x.shape[0], BLOCK_M), cdiv(x.shape[1], BLOCK_N)
    launch(dropout_kernel, grid, x, out, seed, *x.shape, **constants)
    return out


def feed_forward(
    x: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    *,
    activation: str = "gelu",
    dropout_p: float = 0.0,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
    """dropout(f(x w1^T + b1) w2^T + b2), where f is relu, gelu, gelu_tanh or relu_squared.

    x (..., C), w1 (F, C), b1 (F,) or None, w2 (C, F), b2 (C,) or None -> (..., C); one dtype, or
    autocast, which casts all as PyTorch's linear layer does. The mask of y as (rows, C) is
    `philox.rows_kept(seed, STREAM, rows, C, dropout_p)`; seed is an int64 tensor () on the device,
    drawn from the device's generator if it is None. Raises ValueError if arguments do not fit.
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
    seed = seed_of_call(seed, dropout_p, x.device)
    rows = x.view(-1, x.shape[-1])  # (M, C)
    return FeedForward.apply(rows, w1, b1, w2, b2, seed, activation, dropout_p).view(x.shape)


def _cast(operand):
    """A contiguous operand in the dtype of autocast."""
    return operand.to(autocast_dtype(operand) or operand.dtype).contiguous()
