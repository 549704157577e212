"""Cross entropy, rung 1: two loops over each row of logits.

    m = max x        s = sum exp(x - m)        loss = log s + m - x_target

A program takes one row. It finds the largest logit, then the sum, tile by tile, and finally loads
the target's logit. Without m, exp overflows for a logit of 89. Only the loss of each row is stored,
whereas PyTorch stores the log_softmax, as many numbers as there are logits.

Limitation: a row of GPT-2's vocabulary is 100 KB in bf16, and it is read twice.
Next: one loop for both.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch


@triton.jit
def _forward(logits_ptr, targets_ptr, losses_ptr, V, COLUMNS: tl.constexpr = 4096):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * V
    largest = tl.full((COLUMNS,), float("-inf"), tl.float32)
    for start in range(0, V, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        x = tl.load(logits_ptr + column, column < V, other=float("-inf")).to(tl.float32)
        largest = tl.maximum(largest, x)
    m = tl.max(largest)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, V, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        x = tl.load(logits_ptr + column, column < V, other=float("-inf")).to(tl.float32)
        total += tl.exp(x - m)
    s = tl.sum(total)
    x_target = tl.load(logits_ptr + tl.load(targets_ptr + row)).to(tl.float32)
    tl.store(losses_ptr + row, tl.log(s) + m - x_target)


def cross_entropy(logits, targets):
    """logits (..., V) contiguous, targets (...) int64 -> (), the mean."""
    V = logits.shape[-1]
    losses = torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
    launch(_forward, (targets.numel(),), logits, targets, losses, V, num_warps=8)
    return losses.mean()
