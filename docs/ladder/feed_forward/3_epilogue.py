"""Feed-forward, rung 3: an epilogue.

The tile of the first product is still in registers when the bias is added. Applying the GELU there,
gelu(x) = x Phi(x) = x (1 + erf(x / sqrt 2)) / 2, costs instructions but no memory traffic, and
saves a pass that reads and writes hidden, the widest tensor of a block. The sum is rounded to 16
bits before the GELU, as if it had been stored, so that a gradient is taken at the same point.

Limitation: the tensor cores idle during the epilogue, and erf takes dozens of instructions per
number (34 on sm_90). At the start of each tile they wait for its first operands. Every thread
computes its own addresses.
Next: persistent programs, and operands loaded by descriptor.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch

BLOCK_M, BLOCK_N, BLOCK_K = 128, 128, 32


@triton.jit
def _linear(
    x_ptr,  # (M, K)
    w_ptr,  # (N, K)
    b_ptr,  # (N,)
    y_ptr,  # (M, N)
    M, N, K, GELU: tl.constexpr,
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
    y = acc.to(y_ptr.dtype.element_ty)
    if GELU:
        rounded = y.to(tl.float32)
        y = (0.5 * rounded * (1 + tl.erf(rounded * 0.7071067811865476))).to(y.dtype)
    tl.store(y_ptr + row * N + column[None, :], y, (row < M) & (column < N)[None, :])


def linear(x, w, b, gelu):  # (M, K), (N, K), (N,) -> (M, N)
    (M, K), N = x.shape, len(w)
    y = torch.empty((M, N), dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(N, BLOCK_N), triton.cdiv(M, BLOCK_M))
    tile = {"BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K}
    launch(_linear, grid, x, w, b, y, M, N, K, GELU=gelu, **tile, num_warps=8, num_stages=4)
    return y


def feed_forward(x, w1, b1, w2, b2):
    """x (..., C), w1 (F, C), b1 (F,), w2 (C, F), b2 (C,), all contiguous -> (..., C)."""
    hidden = linear(x.view(-1, x.shape[-1]), w1, b1, gelu=True)
    return linear(hidden, w2, b2, gelu=False).view(x.shape)
