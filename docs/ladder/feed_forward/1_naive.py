"""Feed-forward, rung 1: one program per output element.

    hidden = gelu(x w1^T + b1)        y = hidden w2^T + b2

Each element of a product is a row of x times a row of w. A program loads both rows tile by tile,
multiplies, sums, adds the bias, and stores one number. PyTorch computes the GELU.

Limitation: each number is used once after it is loaded. Every row of w is read for every row of x,
and the tensor cores are not used.
Next: a tile of the output per program.
"""

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from kernels.common.launch import launch


@triton.jit
def _linear(
    x_ptr,  # (M, K)
    w_ptr,  # (N, K)
    b_ptr,  # (N,)
    y_ptr,  # (M, N)
    K,
    STEP: tl.constexpr = 256,
):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1)
    acc = tl.zeros((STEP,), tl.float32)
    for first in range(0, K, STEP):
        k = first + tl.arange(0, STEP)
        x = tl.load(x_ptr + row * K + k, k < K, other=0).to(tl.float32)
        w = tl.load(w_ptr + column * K + k, k < K, other=0).to(tl.float32)
        acc += x * w
    y = tl.sum(acc) + tl.load(b_ptr + column).to(tl.float32)
    tl.store(y_ptr + row * tl.num_programs(1) + column, y)


def linear(x, w, b):  # (M, K), (N, K), (N,) -> (M, N)
    y = torch.empty((len(x), len(w)), dtype=x.dtype, device=x.device)
    launch(_linear, (len(x), len(w)), x, w, b, y, x.shape[1], num_warps=1)
    return y


def feed_forward(x, w1, b1, w2, b2):
    """x (..., C), w1 (F, C), b1 (F,), w2 (C, F), b2 (C,), all contiguous -> (..., C)."""
    hidden = F.gelu(linear(x.view(-1, x.shape[-1]), w1, b1))
    return linear(hidden, w2, b2).view(x.shape)
