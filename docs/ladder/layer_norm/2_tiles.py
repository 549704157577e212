"""LayerNorm, rung 2: a tile at a time.

The same three loops over the row, in tiles of 1,024 numbers. `tl.arange` distributes a tile over
the threads, so neighbouring threads read neighbouring addresses and use the memory's 32-byte
sectors fully. Sums are accumulated per position of the tile and reduced once after the loop.

Limitation: x is read three times. The second and third read often come from a cache, but still take
time, and each loop must finish before the next one starts.
Next: keep the row in registers.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch


@triton.jit
def _forward(
    x_ptr, weight_ptr, bias_ptr, y_ptr, C, EPS: tl.constexpr, COLUMNS: tl.constexpr = 1024
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
    launch(_forward, (rows,), x, weight, bias, y, C, EPS=eps, num_warps=4)
    return y
