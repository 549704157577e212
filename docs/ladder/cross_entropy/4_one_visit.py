"""Cross entropy, rung 4: the gradient in forward.

At the end of a row the program knows m and s, and the row is still in the caches. It loops over the
row again, last tile first, and writes the gradient for dloss = 1, the value that `loss.backward()`
passes. The logits are read from memory once and the gradient is written once, the minimum.

Limitation: backward multiplies by dloss, a whole pass over the gradient that usually multiplies by
1. In fp16, gradients that a loss scale of 65,536 would preserve have already been rounded to 0.
   Rows of 50,257 logits start at odd addresses, so their loads are narrow.
Next: the shipped kernel.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch


@triton.jit
def _forward(logits_ptr, targets_ptr, losses_ptr, dlogits_ptr, V, COLUMNS: tl.constexpr = 4096):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    m = float("-inf")
    s = 0.0
    for start in range(0, V, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        x = tl.load(logits_ptr + row * V + column, column < V, other=float("-inf")).to(tl.float32)
        m_new = tl.maximum(m, tl.max(x))
        s = s * tl.exp(m - m_new) + tl.sum(tl.exp(x - m_new))
        m = m_new
    x_target = tl.load(logits_ptr + row * V + target).to(tl.float32)
    tl.store(losses_ptr + row, tl.log(s) + m - x_target)

    tiles = tl.cdiv(V, COLUMNS)
    for back in range(tiles):
        column = (tiles - 1 - back) * COLUMNS + tl.arange(0, COLUMNS)
        x = tl.load(logits_ptr + row * V + column, column < V, other=float("-inf")).to(tl.float32)
        dx = (tl.exp(x - m) / s - tl.where(column == target, 1.0, 0.0)) / tl.num_programs(0)
        tl.store(dlogits_ptr + row * V + column, dx, column < V)


class CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets):  # (..., V), (...)
        losses = torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
        dlogits = torch.empty_like(logits)
        operands = (logits, targets, losses, dlogits, logits.shape[-1])
        launch(_forward, (targets.numel(),), *operands, num_warps=8)
        ctx.save_for_backward(dlogits)
        return losses.mean()

    @staticmethod
    def backward(ctx, dloss):
        (dlogits,) = ctx.saved_tensors
        return dlogits * dloss.to(dlogits.dtype), None


def cross_entropy(logits, targets):
    """logits (..., V) contiguous, targets (...) int64 -> (), the mean."""
    return CrossEntropy.apply(logits, targets)
