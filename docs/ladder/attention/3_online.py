"""Attention, rung 3: one loop, with a running maximum.

    m_new = max(m, max s)     alpha = exp(m - m_new)     p = exp(s - m_new)
    z = alpha z + sum p       acc = alpha acc + p v      m = m_new

Multiplying by alpha converts sums for the old maximum into sums for the new one (Milakov and
Gimelshein 2018). The maximum need not be known in advance, and every score is computed once. The
first alpha is exp(-inf) = 0, which clears the initial values.

Limitation: still one row per program. Each number of k is used in one multiplication, outside the
tensor cores, which multiply whole tiles.
Next: many rows share a tile of keys.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, out_ptr, T, SCALE: tl.constexpr, D: tl.constexpr, N: tl.constexpr = 64
):  # q, k, v, out (B, H, T, D); N keys per tile
    row = tl.program_id(0)
    begin = tl.program_id(1).to(tl.int64) * T * D  # offset of the head
    d = tl.arange(0, D)
    q = tl.load(q_ptr + begin + row * D + d).to(tl.float32) * SCALE  # (D,)
    m = float("-inf")
    z = 0.0
    acc = tl.zeros((D,), tl.float32)
    for first_key in range(0, row + 1, N):
        key = first_key + tl.arange(0, N)
        visible = key <= row
        at = begin + key[:, None] * D + d[None, :]
        k = tl.load(k_ptr + at, visible[:, None], other=0).to(tl.float32)  # (N, D)
        v = tl.load(v_ptr + at, visible[:, None], other=0).to(tl.float32)  # (N, D)
        s = tl.where(visible, tl.sum(q[None, :] * k, 1), float("-inf"))  # (N,)
        m_new = tl.maximum(m, tl.max(s))
        alpha = tl.exp(m - m_new)
        p = tl.exp(s - m_new)
        z = z * alpha + tl.sum(p)
        acc = acc * alpha + tl.sum(p[:, None] * v, 0)
        m = m_new
    tl.store(out_ptr + begin + row * D + d, acc / z)


def attention(q, k, v):
    """q, k, v (B, H, T, D) contiguous, D a power of two -> (B, H, T, D), causal."""
    B, H, T, D = q.shape
    out = torch.empty_like(q)
    launch(_forward, (T, B * H), q, k, v, out, T, SCALE=D**-0.5, D=D, num_warps=4)
    return out
