"""LayerNorm, rung 2: many numbers at a time.

The same three walks over the row, but by tiles of 1,024 numbers. `tl.arange` spreads a tile over
the threads of the program: neighbours read neighbouring addresses, and the memory's 32-byte sectors
are used whole. Sums are kept a number per place of the tile and added up once, after the walk. The
mask is for the last tile, which is not full.

What is wrong: x is asked for three times. The second and third time it often comes from a cache,
but not for free, and each walk must end before the next one begins.
Next: a row is held in registers.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch

COLUMNS = 1024  # of a tile


@triton.jit
def _forward(
    x_ptr,  # (rows, C)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    y_ptr,  # (rows, C)
    C,
    EPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * C
    y_ptr += row * C
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, C, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        total += tl.load(x_ptr + column, column < C, other=0).to(tl.float32)
    mean = tl.sum(total) / C
    squares = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, C, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        x = tl.load(x_ptr + column, column < C, other=0).to(tl.float32)
        distance = tl.where(column < C, x - mean, 0)  # 0 - mean is not 0
        squares += distance * distance
    rstd = tl.rsqrt(tl.sum(squares) / C + EPS)
    for start in range(0, C, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < C
        xhat = (tl.load(x_ptr + column, inside).to(tl.float32) - mean) * rstd
        weight = tl.load(weight_ptr + column, inside).to(tl.float32)
        bias = tl.load(bias_ptr + column, inside).to(tl.float32)
        tl.store(y_ptr + column, xhat * weight + bias, inside)


def layer_norm(x, weight, bias, *, eps=1e-5):
    """x (..., C) contiguous, weight (C,), bias (C,) -> (..., C)."""
    C = x.shape[-1]
    y = torch.empty_like(x)
    rows = x.numel() // C
    launch(_forward, (rows,), x, weight, bias, y, C, EPS=eps, COLUMNS=COLUMNS, num_warps=4)
    return y


if __name__ == "__main__":
    from bench.recipes.ladder import show

    show(__file__, layer_norm)
