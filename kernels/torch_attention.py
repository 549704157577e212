"""The parts of attention that `scaled_dot_product_attention` lacks, for `torch_ops.py`."""

import torch
from torch.nn import functional as F


def fused_attention(*operands, **options):
    """`scaled_dot_product_attention`, on a GPU of copies if q, k or v is not 16-byte aligned."""
    unaligned = (x.is_cuda and x.storage_offset() * x.element_size() % 16 for x in operands)
    operands = [x.clone() if copy else x for x, copy in zip(operands, unaligned, strict=True)]
    return F.scaled_dot_product_attention(*operands, **options)


def attention_by_products(q, k, v, mask, softcap, dropout_p, scale):
    """Attention by whole matrices, with a `mask` (T, Tk) or (1 or B, 1 or H, T, Tk)."""
    B, H, T, D = q.shape
    Hkv, Tk = k.shape[1:3]
    group = H // Hkv  # its queries are rows of one product
    if mask.ndim == 2:
        mask = mask.expand(group, T, Tk).reshape(group * T, Tk)
    else:
        mask = mask.expand(B, H, T, Tk).reshape(B * Hkv, group * T, Tk)
    q = q.reshape(B * Hkv, group * T, D)
    k, v = k.flatten(0, 1), v.flatten(0, 1)  # (B*Hkv, Tk, D)
    scale = D**-0.5 if scale is None else scale
    if softcap:
        logits = mask + softcap * (q @ k.mT * (scale / softcap)).tanh()
    else:
        logits = torch.baddbmm(mask, q, k.mT, alpha=scale)
    weights = logits.softmax(-1)  # (B*Hkv, group*T, Tk)
    return (F.dropout(weights, dropout_p) @ v).view(B, H, T, v.shape[2])


def attention_mask(q, k, causal, window, ranges):
    """What is added to the logits (..., Tq, Tk), and which rows (..., Tq, 1) see no key.

    It is -inf where a row does not see a key, except in rows that see none; None if none can.
    """
    Tq, Tk = q.shape[2], k.shape[2]
    offset = Tk - Tq if causal == "bottom_right" else 0
    position = torch.arange(offset, Tq + offset, device=q.device)[:, None]
    key = torch.arange(Tk, device=q.device)
    seen = position >= key if causal else torch.ones_like(position >= key)
    if window:
        seen = seen & (position - key < window)
    if ranges is not None:
        begin, end = ranges.of_rows[:, None, :, :, None].unbind(3)  # (B or 1, 1, Tq, 1)
        seen = seen & (key >= begin) & (key < end)
    unseeing = None
    if offset < 0 or window or ranges is not None:
        unseeing = ~seen.any(-1, keepdim=True)
        seen = seen | unseeing
    return q.new_zeros(seen.shape).masked_fill(~seen, float("-inf")), unseeing
