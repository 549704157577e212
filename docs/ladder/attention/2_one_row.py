"""Attention, rung 2: no (T, T) matrix.

A program takes one row of q and loops over the keys that it attends to, N at a time. The first loop
finds the largest score m. The second recomputes the scores and accumulates z, the sum of p = exp(s
- m), and the sum of p v. Only q, k, v and out move between memory and chip.

Limitation: the scores are computed twice, because the second loop needs the maximum. Every row
loads all of its keys and values, so k and v of a head are read T times.
Next: a single loop.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch


@triton.jit
def _scores(q, k_ptr, key, row, D: tl.constexpr):
    """Scores (N,) of one row's q (D,); -inf for masked keys."""
    d = tl.arange(0, D)
    visible = key <= row
    k = tl.load(k_ptr + key[:, None] * D + d[None, :], visible[:, None], other=0)  # (N, D)
    return tl.where(visible, tl.sum(q[None, :] * k.to(tl.float32), 1), float("-inf"))


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, out_ptr, T, SCALE: tl.constexpr, D: tl.constexpr, N: tl.constexpr = 64
):  # q, k, v, out (B, H, T, D); N keys per tile
    row = tl.program_id(0)
    begin = tl.program_id(1).to(tl.int64) * T * D  # offset of the head
    d = tl.arange(0, D)
    q = tl.load(q_ptr + begin + row * D + d).to(tl.float32) * SCALE  # (D,)
    largest = tl.full((N,), float("-inf"), tl.float32)
    for first_key in range(0, row + 1, N):
        s = _scores(q, k_ptr + begin, first_key + tl.arange(0, N), row, D)
        largest = tl.maximum(largest, s)
    m = tl.max(largest)
    z = tl.zeros((N,), tl.float32)
    acc = tl.zeros((D,), tl.float32)
    for first_key in range(0, row + 1, N):
        key = first_key + tl.arange(0, N)
        p = tl.exp(_scores(q, k_ptr + begin, key, row, D) - m)
        at = v_ptr + begin + key[:, None] * D + d[None, :]
        v = tl.load(at, (key <= row)[:, None], other=0).to(tl.float32)  # (N, D)
        z += p
        acc += tl.sum(p[:, None] * v, 0)
    tl.store(out_ptr + begin + row * D + d, acc / tl.sum(z))


def attention(q, k, v):
    """q, k, v (B, H, T, D) contiguous, D a power of two -> (B, H, T, D), causal."""
    B, H, T, D = q.shape
    out = torch.empty_like(q)
    launch(_forward, (T, B * H), q, k, v, out, T, SCALE=D**-0.5, D=D, num_warps=4)
    return out
