"""Attention, rung 4: tiles of rows, on the tensor cores.

A program holds M = 64 rows of q. The scores of M rows and N keys are one matrix product, `tl.dot`,
and so is p v. A tile of keys and values is read once for 64 rows. The tensor cores take q, k, v and
p in 16 bits and accumulate in fp32. This is FlashAttention (Dao et al. 2022, 2023).

Limitation: it computes the whole square and masks half of it. Every tile is masked, though only the
tiles on the diagonal need it. exp is compiled to a multiplication and exp2.
Next: skip what is masked.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch

M, N = 64, 64  # rows and keys per tile


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, out_ptr,  # (B, H, T, D)
    T, SCALE: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * M + tl.arange(0, M)
    begin = tl.program_id(1).to(tl.int64) * T * D  # offset of the head
    d = tl.arange(0, D)
    at_row = begin + row[:, None] * D + d[None, :]
    q = tl.load(q_ptr + at_row, (row < T)[:, None], other=0)  # (M, D)
    m = tl.full((M,), float("-inf"), tl.float32)
    z = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, D), tl.float32)
    for first_key in range(0, T, N):
        key = first_key + tl.arange(0, N)
        at_key = begin + key[:, None] * D + d[None, :]
        k = tl.load(k_ptr + at_key, (key < T)[:, None], other=0)  # (N, D)
        v = tl.load(v_ptr + at_key, (key < T)[:, None], other=0)  # (N, D)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * SCALE  # (M, N)
        s = tl.where(row[:, None] >= key[None, :], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))  # (M,), finite because every row attends to key 0
        alpha = tl.exp(m - m_new)
        p = tl.exp(s - m_new[:, None])
        z = z * alpha + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision="ieee")
        m = m_new
    out = acc / z[:, None]
    tl.store(out_ptr + at_row, out.to(out_ptr.dtype.element_ty), (row < T)[:, None])


def attention(q, k, v):
    """q, k, v (B, H, T, D) contiguous, D a power of two, at least 16 -> (B, H, T, D), causal."""
    B, H, T, D = q.shape
    out = torch.empty_like(q)
    constants = {"SCALE": D**-0.5, "D": D, "M": M, "N": N}
    launch(_forward, (triton.cdiv(T, M), B * H), q, k, v, out, T, **constants, num_warps=4)
    return out
