"""LayerNorm, rung 4: several rows at a time.

A program takes a tile of rows with 4,096 numbers, whatever their width. Each of its 128 threads has
32 numbers, in 16 bits four loads of 16 bytes, all in flight before the first is needed. Weight and
bias are loaded once for all rows of the tile. Sums are along dimension 1, one per row.

Limitation: none for the forward pass of a row that fits, but training needs a gradient.
Next: the gradient, with sums over rows.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch

ELEMENTS = 4096  # per tile


@triton.jit
def _forward(
    x_ptr,  # (rows, C)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    y_ptr,  # (rows, C)
    rows,
    C: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # (ROWS, 1)
    column = tl.arange(0, COLUMNS)[None, :]  # (1, COLUMNS)
    inside = (row < rows) & (column < C)
    x = tl.load(x_ptr + row * C + column, inside, other=0).to(tl.float32)  # (ROWS, COLUMNS)
    weight = tl.load(weight_ptr + column, column < C, other=0).to(tl.float32)  # (1, COLUMNS)
    bias = tl.load(bias_ptr + column, column < C, other=0).to(tl.float32)
    mean = tl.sum(x, 1) / C  # (ROWS,)
    x = tl.where(inside, x - mean[:, None], 0)
    rstd = tl.rsqrt(tl.sum(x * x, 1) / C + EPS)
    tl.store(y_ptr + row * C + column, x * rstd[:, None] * weight + bias, inside)


def layer_norm(x, weight, bias, *, eps=1e-5):
    """x (..., C) contiguous, weight (C,), bias (C,) -> (..., C)."""
    C = x.shape[-1]
    y = torch.empty_like(x)
    rows = x.numel() // C
    COLUMNS = triton.next_power_of_2(C)
    ROWS = max(1, ELEMENTS // COLUMNS)
    constants = {"C": C, "EPS": eps, "ROWS": ROWS, "COLUMNS": COLUMNS}
    launch(_forward, (triton.cdiv(rows, ROWS),), x, weight, bias, y, rows, **constants, num_warps=4)
    return y
