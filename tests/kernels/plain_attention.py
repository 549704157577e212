"""Attention as the lecture computes it, whole matrices in the operands' dtype, for any mask."""

import torch


def plain_attention(q, k, v, *, causal=True, window=0, scale=None, keep=None, keep_scale=1.0):
    """q (B, H, Tq, D), k and v (B, Hkv, Tk, D), keep (B, H, Tq, Tk) booleans -> (B, H, Tq, D)."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    wei = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)  # (B, H, Tq, Tk)
    if causal:
        tril = torch.ones(wei.shape[-2:], dtype=torch.bool, device=q.device).tril()
        wei = wei.masked_fill(~tril, float("-inf"))
    if window:
        row, key = (torch.arange(size, device=q.device) for size in wei.shape[-2:])
        wei = wei.masked_fill(key <= row[:, None] - window, float("-inf"))
    wei = wei.softmax(-1)
    if keep is not None:
        wei = wei * keep * keep_scale
    return wei @ v
