"""LayerNorm, rung 1: one number at a time.

    mean = 1/C sum x        rstd = 1 / sqrt(1/C sum (x - mean)^2 + eps)
    y = (x - mean) rstd weight + bias

A program takes one row and loops over it three times: for the mean, for the variance, and for y.

Limitation: a program is at least one warp of 32 threads. When it loads one number, all 32 do the
same work, for 2 of the 128 bytes that a warp could load at once. The sum waits for every load.
Next: neighbouring threads load neighbouring numbers.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch


@triton.jit
def _forward(
    x_ptr,  # (rows, C)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    y_ptr,  # (rows, C)
    C,
    EPS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * C
    y_ptr += row * C
    total = 0.0
    for column in range(C):
        total += tl.load(x_ptr + column).to(tl.float32)
    mean = total / C
    squares = 0.0
    for column in range(C):
        distance = tl.load(x_ptr + column).to(tl.float32) - mean
        squares += distance * distance
    rstd = tl.rsqrt(squares / C + EPS)
    for column in range(C):
        xhat = (tl.load(x_ptr + column).to(tl.float32) - mean) * rstd
        weight = tl.load(weight_ptr + column).to(tl.float32)
        bias = tl.load(bias_ptr + column).to(tl.float32)
        tl.store(y_ptr + column, xhat * weight + bias)


def layer_norm(x, weight, bias, *, eps=1e-5):
    """x (..., C) contiguous, weight (C,), bias (C,) -> (..., C)."""
    C = x.shape[-1]
    y = torch.empty_like(x)
    rows = x.numel() // C
    launch(_forward, (rows,), x, weight, bias, y, C, EPS=eps, num_warps=1)
    return y
