"""Attention, rung 1: the lecture's three lines, the softmax as a kernel.

    wei = scale q k^T        wei = softmax(wei, where row >= key)        out = wei v

The products are PyTorch's. Between them the lecture masks and normalises in two steps, each of
which reads and writes a (T, T) matrix per head. Here one program takes a row of it: scales, masks,
finds the largest, takes exp, divides. The row is as wide as the tile, so it is read once and
written once. The largest score is subtracted because exp of 89 overflows, and the quotient is the
same without.

What is wrong: the (T, T) matrices. They are written, read, written and read: with T = 1,024 and
heads of 64, sixteen times the bytes of q, k, v and out. They grow with T^2, and so does the memory
for them. The mask ends anywhere in a row, so the compiler dares no load wider than a number.
Next: a row of scores that never leaves the chip.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch


@triton.jit
def _softmax(
    s_ptr,  # (B, H, T, T)
    p_ptr,  # (B, H, T, T)
    T,
    SCALE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # of all heads
    key = tl.arange(0, COLUMNS)
    seen = key <= row % T
    s = tl.load(s_ptr + row * T + key, seen, other=float("-inf")).to(tl.float32) * SCALE
    p = tl.exp(s - tl.max(s))
    tl.store(p_ptr + row * T + key, p / tl.sum(p), key < T)


@torch.no_grad()  # the kernel has no backward
def attention(q, k, v):
    """q, k, v (B, H, T, D) -> (B, H, T, D), causal."""
    B, H, T, D = q.shape
    s = q @ k.mT  # (B, H, T, T)
    p = torch.empty_like(s)
    COLUMNS = triton.next_power_of_2(T)
    launch(_softmax, (B * H * T,), s, p, T, SCALE=D**-0.5, COLUMNS=COLUMNS, num_warps=4)
    return p @ v


if __name__ == "__main__":
    from bench.recipes.ladder import show

    show(__file__, attention)
