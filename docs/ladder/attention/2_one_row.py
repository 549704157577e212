"""Attention, rung 2: no (T, T) matrix.

A program takes one row of q and walks over the keys that it may see, N at a time: once for the
largest score, and once more, computing the scores again, for the sum z of p = exp(s - m) and for
the sum of p v. Division by z can wait until the end. Nothing but q, k, v and out travels.

What is wrong: the scores are computed twice, because the second walk needs the first one's maximum.
And every row reads all its keys and values for itself: k and v of a head are read T times.
Next: the first walk goes.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch

N = 64  # keys of a tile


@triton.jit
def _scores(q, k_ptr, key, row, D: tl.constexpr):
    """s (N,) of one row's q (D,), -inf where it may not see the key."""
    d = tl.arange(0, D)
    seen = key <= row
    k = tl.load(k_ptr + key[:, None] * D + d[None, :], seen[:, None], other=0)  # (N, D)
    return tl.where(seen, tl.sum(q[None, :] * k.to(tl.float32), 1), float("-inf"))


@triton.jit
def _forward(
    q_ptr,  # (B, H, T, D)
    k_ptr,  # (B, H, T, D)
    v_ptr,  # (B, H, T, D)
    out_ptr,  # (B, H, T, D)
    T,
    SCALE: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
):
    row = tl.program_id(0)
    begin = tl.program_id(1).to(tl.int64) * T * D  # of a head
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
    launch(_forward, (T, B * H), q, k, v, out, T, SCALE=D**-0.5, D=D, N=N, num_warps=4)
    return out


if __name__ == "__main__":
    from bench.recipes.ladder import show

    show(__file__, attention)
