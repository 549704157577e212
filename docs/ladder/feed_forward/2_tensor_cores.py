"""Feed-forward, rung 2: tiles, on the tensor cores.

A program computes a tile of 128 x 128 outputs. It loops over K in steps of 32, loads 128 rows of x
and 128 rows of w, and passes them to `tl.dot`. Each loaded number is used 128 times. With
`num_stages`, the compiler loads the next steps' operands during the current multiplication.

Limitation: the GELU between the products is a separate pass. It reads and writes hidden, which is
four times as wide as x.
Next: the product applies the GELU.
"""

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from kernels.common.launch import launch

BLOCK_M, BLOCK_N, BLOCK_K = 128, 128, 32


@triton.jit
def _linear(
    x_ptr,  # (M, K)
    w_ptr,  # (N, K)
    b_ptr,  # (N,)
    y_ptr,  # (M, N)
    M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]  # (BLOCK_M, 1)
    # neighbouring programs share rows of x
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)[None, :]
        x = tl.load(x_ptr + row * K + k, (row < M) & (k < K), other=0)  # (BLOCK_M, BLOCK_K)
        at = column[:, None] * K + k
        w = tl.load(w_ptr + at, (column < N)[:, None] & (k < K), other=0)  # (BLOCK_N, BLOCK_K)
        acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
    acc += tl.load(b_ptr + column, column < N, other=0).to(tl.float32)[None, :]
    inside = (row < M) & (column < N)[None, :]
    tl.store(y_ptr + row * N + column[None, :], acc.to(y_ptr.dtype.element_ty), inside)


def linear(x, w, b):  # (M, K), (N, K), (N,) -> (M, N)
    (M, K), N = x.shape, len(w)
    y = torch.empty((M, N), dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(N, BLOCK_N), triton.cdiv(M, BLOCK_M))
    tile = {"BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K}
    launch(_linear, grid, x, w, b, y, M, N, K, **tile, num_warps=8, num_stages=4)
    return y


def feed_forward(x, w1, b1, w2, b2):
    """x (..., C), w1 (F, C), b1 (F,), w2 (C, F), b2 (C,), all contiguous -> (..., C)."""
    hidden = F.gelu(linear(x.view(-1, x.shape[-1]), w1, b1))
    return linear(hidden, w2, b2).view(x.shape)
