"""Attention, relu^2 and dropout for training on a CPU, where a step is mostly passes over memory.

PyTorch differentiates a normalised and rotated attention, and relu^2, operation by operation. These
backward passes read and write much less memory; they have no second derivative.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LEVELS = 1 << 16  # of the numbers that dropout compares with its rate


class ShortAttention(torch.autograd.Function):
    """Attention of a packed projection by whole matrices, for contexts that fit in the caches.

        q', k' = rotate(r q), rotate(r k)  with r = 1 / rms, or 1
        P = softmax(scale q' k'^T + mask),  out = dropout(P) v

    Backward, with dP = dout v^T where dropout kept P, and G the gradient of q' or k':

        dS = P (dP - rowsum(P dP)),  G = scale dS k' or scale dS^T q',  dv = dropout(P)^T dout
        dx = r rotate^T(G) - x r^2 mean(G x')  for x = q, k, since a rotation keeps products
    """

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,  # (B, T, 3 H D)
        H: int,
        mask: Tensor,  # (T, T), added to the logits
        eps: float | None,  # None: do not normalise
        cos: Tensor | None,  # (T, D)
        sin: Tensor | None,
        dropout_p: float,
        scale: float,
    ) -> Tensor:
        heads = _heads(qkv, 3 * H).clone(memory_format=torch.contiguous_format)  # (3 H, B, T, D)
        _, B, T, D = heads.shape
        qk, r = heads[: 2 * H], None
        if eps is not None:
            size = torch.linalg.vector_norm(qk, dim=-1, keepdim=True)
            exact = size.to(torch.promote_types(size.dtype, torch.float32))
            r = (exact.square() / D + eps).rsqrt().to(size.dtype)  # (2 H, B, T, 1)
            qk *= r
        if cos is not None and sin is not None:
            torch.addcmul(qk.roll(D // 2, -1).mul_(sin), qk, cos, out=qk)
        q, k, v = (each.flatten(0, 1) for each in heads.chunk(3))  # (H B, T, D)
        q *= scale
        weights = torch.bmm(q, k.mT).add_(mask)  # (H B, T, T)
        torch.softmax(weights, -1, out=weights)
        kept, dropped = None, weights
        if dropout_p:
            kept = keep_mask(weights, dropout_p)
            dropped = weights * kept
        out = torch.bmm(dropped, v)
        ctx.save_for_backward(qkv, heads, weights, dropped, kept, r, cos, sin)
        ctx.scale = scale
        return out.view(H, B, T, D).permute(1, 2, 0, 3).reshape(B, T, H * D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):  # type: ignore[override]
        qkv, heads, weights, dropped, kept, r, cos, sin = ctx.saved_tensors
        H, D = len(heads) // 3, heads.shape[3]
        q, k, v = (each.flatten(0, 1) for each in heads.chunk(3))
        dout = _heads(dout, H).reshape(q.shape)
        dlogits = torch.bmm(dout, v.mT)  # (H B, T, T)
        if kept is not None:
            dlogits *= kept
        torch._softmax_backward_data(dlogits, weights, -1, weights.dtype, grad_input=dlogits)
        grads = torch.empty_like(heads)  # of q' scale, k' and v
        products = (dlogits, k), (dlogits.mT, q), (dropped.mT, dout)
        for grad, product in zip(grads.chunk(3), products, strict=True):
            torch.bmm(*product, out=grad.view(q.shape))

        qk, scale = grads[: 2 * H], heads.new_ones(2 * H, 1, 1, 1)
        scale[:H] = ctx.scale
        if r is not None:
            means = (qk * heads[: 2 * H]).sum(-1, keepdim=True).div_(D)
            scale = scale * r
        if cos is not None:
            torch.addcmul((qk * sin).roll(D // 2, -1), qk, cos, out=qk)
        qk *= scale
        dqkv = torch.empty_like(qkv)
        into = _heads(dqkv, 3 * H)
        if r is None:
            into.copy_(grads)
        else:
            x = _heads(qkv, 3 * H)[: 2 * H]
            torch.addcmul(qk, x, means.mul_(r * r), value=-1, out=into[: 2 * H])
            into[2 * H :] = grads[2 * H :]
        return dqkv, *[None] * 7


def _heads(packed: Tensor, count: int) -> Tensor:
    """(B, T, count D) as (count, B, T, D), without a copy."""
    return packed.unflatten(2, (count, -1)).permute(2, 0, 1, 3)


class ReluSquared(torch.autograd.Function):
    """relu(x w1^T)^2 w2^T of x (..., C); the weights may have a wider dtype than x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        w1, w2 = w1.to(x.dtype), w2.to(x.dtype)
        hidden = F.linear(x, w1).relu_()  # (..., F)
        squares = hidden * hidden
        ctx.save_for_backward(x, w1, w2, hidden, squares)
        return F.linear(squares, w2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor):  # type: ignore[override]
        x, w1, w2, hidden, squares = ctx.saved_tensors
        dy, rows = dy.flatten(0, -2), x.flatten(0, -2)
        hidden, squares = hidden.flatten(0, -2), squares.flatten(0, -2)  # (M, F)
        dw2 = dy.mT @ squares
        dhidden = (dy @ (2 * w2)).mul_(hidden)  # hidden is 0 where the ReLU is flat
        return (dhidden @ w1).view(x.shape), dhidden.mT @ rows, dw2


def is_faster(x: Tensor) -> bool:
    """Whether these functions compute x. fp64 and torch.compile keep PyTorch's operations."""
    is_left = x.dtype == torch.float64 or torch.compiler.is_compiling()
    return x.device.type == "cpu" and not is_left


def dropout(x: Tensor, p: float) -> Tensor:
    return x * keep_mask(x, p) if p and is_faster(x) else F.dropout(x, p)


def keep_mask(x: Tensor, p: float) -> Tensor:
    """Like x: 0 with probability p, rounded to 1 / LEVELS, and otherwise what keeps the mean.

    PyTorch draws one number for each element on a single core. This draws one for four elements.
    """
    dropped = round(p * LEVELS)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    numbers = words.view(torch.int16)[: x.numel()].view(x.shape)  # from -LEVELS / 2 on
    return (numbers >= dropped - LEVELS // 2).to(x.dtype).mul_(LEVELS / max(1, LEVELS - dropped))
