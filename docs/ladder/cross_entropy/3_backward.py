"""Cross entropy, rung 3: the gradient from two numbers per row.

    dx_j = (exp(x_j - m) / s - [j = target]) dloss / N

(See docs/maths.md.) Forward saves m and s; backward reads the logits again and recomputes the
softmax. dloss is read on the device; reading it on the host would synchronise.

Limitation: between forward and backward, a gigabyte of logits passes through the caches, so the
second read comes from memory. But the end of a row's forward loop already has all that is needed.
Next: compute the gradient there.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch


@triton.jit
def _forward(logits_ptr, targets_ptr, losses_ptr, m_ptr, s_ptr, V, COLUMNS: tl.constexpr = 4096):
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
    tl.store(m_ptr + row, m)
    tl.store(s_ptr + row, s)


@triton.jit
def _backward(
    logits_ptr, targets_ptr, m_ptr, s_ptr, dloss_ptr, dlogits_ptr, V, COLUMNS: tl.constexpr = 4096
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    m, s = tl.load(m_ptr + row), tl.load(s_ptr + row)
    scale = tl.load(dloss_ptr) / tl.num_programs(0)  # N programs, one per row
    for start in range(0, V, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        at = row * V + column
        x = tl.load(logits_ptr + at, column < V, other=float("-inf")).to(tl.float32)
        dx = (tl.exp(x - m) / s - tl.where(column == target, 1.0, 0.0)) * scale
        tl.store(dlogits_ptr + at, dx, column < V)


class CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets):  # (..., V), (...)
        shape, V = targets.shape, logits.shape[-1]
        losses, m, s = torch.empty((3, *shape), dtype=torch.float32, device=logits.device)
        operands = (logits, targets, losses, m, s, V)
        launch(_forward, (targets.numel(),), *operands, num_warps=8)
        ctx.save_for_backward(logits, targets, m, s)
        return losses.mean()

    @staticmethod
    def backward(ctx, dloss):
        logits, targets, m, s = ctx.saved_tensors
        dlogits = torch.empty_like(logits)
        operands = (logits, targets, m, s, dloss, dlogits, logits.shape[-1])
        launch(_backward, (targets.numel(),), *operands, num_warps=8)
        return dlogits, None


def cross_entropy(logits, targets):
    """logits (..., V) contiguous, targets (...) int64 -> (), the mean."""
    return CrossEntropy.apply(logits, targets)
