"""Attention as the lecture computes it, and the comparison of the kernels with it."""

from functools import partial

import torch

from kernels.common import philox
from kernels.flash_attention.attention import attention
from tests.numerics import hold_against
from tests.operands import DEVICE, randn

SEED = torch.tensor(0x0123456789ABCDEF, device=DEVICE)


def operands(B, H, Hkv, Tq, Tk, D, dtype=torch.float32, Dv=None):
    """q (B, H, Tq, D), k (B, Hkv, Tk, D), and v (B, Hkv, Tk, Dv) with Dv = D by default."""
    q, k = randn(B, H, Tq, D, dtype=dtype), randn(B, Hkv, Tk, D, dtype=dtype, seed=1)
    return q, k, randn(B, Hkv, Tk, Dv or D, dtype=dtype, seed=2)


def plain_attention(
    q, k, v, *, causal=True, window=0, softcap=0.0, ranges=None, scale=None,
    keep=None, keep_scale=1.0,
):  # fmt: skip
    """Whole matrices in the operands' dtype; keep (B, H, Tq, Tk) booleans -> (B, H, Tq, D)."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    wei = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)  # (B, H, Tq, Tk)
    row, key = (torch.arange(size, device=q.device) for size in wei.shape[-2:])
    row = row[:, None] + (len(key) - len(row) if causal == "bottom_right" else 0)
    if softcap:
        wei = softcap * torch.tanh(wei / softcap)
    hidden = row < key if causal else torch.zeros_like(row < key)
    if window:
        hidden = hidden | (key <= row - window)
    if ranges is not None:
        first, end = ranges.of_rows.unbind(-1)  # (B or 1, Tq)
        hidden = hidden | (key < first[:, None, :, None]) | (key >= end[:, None, :, None])
    see_some = ~hidden.all(-1, keepdim=True)
    wei = wei.masked_fill(hidden & see_some, float("-inf")).softmax(-1) * see_some
    if keep is not None:
        wei = wei * keep * keep_scale
    return wei @ v


def largest_logit(q, k, scale=None):
    """The largest |scale q . k| of all pairs: P is its exponential, so roundings grow with it."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q.detach().double() @ k.detach().double().mT
    return logits.abs().max().item() * (q.shape[-1] ** -0.5 if scale is None else scale)


def hold(tensors, p=0.0, **options):
    """FlashAttention's rule: at most twice the error of the plain computation in the same dtype
    and with the same mask, three times for gradients, plus the roundings of `largest_logit`."""
    (q, k, _), ours, plain = tensors, attention, plain_attention
    if p:
        keep = philox.attention_kept(SEED, *q.shape[:3], k.shape[2], p)
        ours = partial(ours, dropout_p=p, seed=SEED)
        plain = partial(plain, keep=keep, keep_scale=philox.threshold_and_scale(p)[1])
    hold_against(
        partial(ours, **options),
        partial(plain, **options),
        tensors,
        compute=q.dtype,
        gradient_factor=3.0,
        largest_logit=largest_logit(q, k, options.get("scale")),
    )
