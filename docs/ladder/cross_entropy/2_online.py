"""Cross entropy, rung 2: the maximum and the sum in one loop.

Multiplying by exp(m - m_new) converts a sum of exp(x - m) to the new maximum (Milakov and
Gimelshein 2018, the online softmax, also used by attention). m and s are updated together, and
every logit is read once. The multiplication happens once per tile.

Limitation: it has no gradient. PyTorch's gradient needs the softmax of every row, N x V numbers
written in forward and read in backward.
Next: a gradient from two numbers per row.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch


@triton.jit
def _forward(logits_ptr, targets_ptr, losses_ptr, V, COLUMNS: tl.constexpr = 4096):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * V
    m = float("-inf")
    s = 0.0
    for start in range(0, V, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        x = tl.load(logits_ptr + column, column < V, other=float("-inf")).to(tl.float32)
        m_new = tl.maximum(m, tl.max(x))
        s = s * tl.exp(m - m_new) + tl.sum(tl.exp(x - m_new))
        m = m_new
    x_target = tl.load(logits_ptr + tl.load(targets_ptr + row)).to(tl.float32)
    tl.store(losses_ptr + row, tl.log(s) + m - x_target)


def cross_entropy(logits, targets):
    """logits (..., V) contiguous, targets (...) int64 -> (), the mean."""
    V = logits.shape[-1]
    losses = torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
    launch(_forward, (targets.numel(),), logits, targets, losses, V, num_warps=8)
    return losses.mean()
