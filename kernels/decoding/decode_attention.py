"""Attention of one new token of each row over the cache, to which the token is added.

For the query q, key k and value v of the token at `position` t, after QK norm and rotary embedding
if the model uses them, over the cached tokens 0 ... t - 1, or with a window W the last W - 1:

    cache[t] = k, v        s = q K^T / sqrt(D)        out = softmax(s) V

There is no backward, because text is generated without gradients.

Decisions:
- With few rows, B x H programs do not fill a GPU, so the keys are divided into parts. The number of
  parts depends on the block size and not on the position, because a CUDA graph has a fixed grid.
  `decode_attention_combine_kernel` adds the parts in order: the same bits every time.
- The new key and value are used from registers, rounded as in the cache, and written by the program
  of the first part of the group's first head: no program waits for a write.
- Query heads that share keys are separate programs: L2 holds what the first one has read.
- The softmax is in base 2 with a running maximum and sum, as in FlashAttention. Products do not use
  tensor cores, since only the bytes of the cache matter.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..common.dtypes import accumulator, triton_accumulator
from ..common.launch import cdiv, launch, next_power_of_2, overlapped, tile
from ..common.operands import check_operands
from ..common.operator import is_traced, register
from ..common.sums import sum_of_products

LOG2_E = tl.constexpr(1.4426950408889634)
LARGEST_HEAD = 256
MOST_PARTS = 32  # of the keys


@triton.jit
def decode_attention_kernel(
    qkv_ptr,  # (B, H + 2 HKV, D)
    cache_ptr,  # (2, B, HKV, T, D)
    position_ptr,  # (B,)
    cos_ptr,  # (T, D) or None
    sin_ptr,  # (T, D) or None
    out_ptr,  # (B, H, D), or (PARTS, B, H, D)
    m_ptr,  # (PARTS, B, H), or None for one part
    z_ptr,  # (PARTS, B, H), or None for one part
    B, T,
    SCALE: tl.constexpr, EPS: tl.constexpr, QK_NORM: tl.constexpr, WINDOW: tl.constexpr,
    H: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, KEYS: tl.constexpr,
    PART: tl.constexpr, ACC: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    if OVERLAPPED:
        gdc_launch_dependents()
        gdc_wait()
    head, batch = tl.program_id(0) % H, (tl.program_id(0) // H).to(tl.int64)
    part = tl.program_id(1)
    position = tl.load(position_ptr + batch).to(tl.int32)
    d = tl.arange(0, BLOCK_D)
    kv_head = head // (H // HKV)
    qkv_ptr += (batch * (H + 2 * HKV) + head) * D
    q = _positioned(qkv_ptr, cos_ptr, sin_ptr, position, d, D, QK_NORM, EPS, ACC)  # (BLOCK_D,)
    k_ptr = cache_ptr + (batch * HKV + kv_head) * T * D
    v_ptr = k_ptr + tl.cast(B, tl.int64) * HKV * T * D

    # --- the cached keys of this part ---
    m = tl.full((), float("-inf"), ACC)
    z = tl.zeros((), ACC)
    acc = tl.zeros((BLOCK_D,), ACC)
    begin, end = part * PART, tl.minimum(part * PART + PART, position)
    if WINDOW > 0:
        begin = tl.maximum(begin, position - WINDOW + 1)
    for first in range(begin, end, KEYS):
        key = first + tl.arange(0, KEYS)
        at = key[:, None] * D + d[None, :]
        seen = key < end
        inside = seen[:, None] & (d < D)[None, :]
        k = tl.load(k_ptr + at, inside, other=0).to(ACC)  # (KEYS, BLOCK_D)
        v = tl.load(v_ptr + at, inside, other=0).to(ACC)  # (KEYS, BLOCK_D)
        s = sum_of_products(q[None, :], k, 1) * (SCALE * LOG2_E)  # (KEYS,)
        s = tl.where(seen, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 0))
        p = tl.exp2(s - m_new)
        alpha = tl.exp2(m - m_new)
        z = z * alpha + tl.sum(p, 0)
        acc = acc * alpha + sum_of_products(p[:, None], v, 0)
        m = m_new

    # --- the new token, in the first part ---
    if part == 0:
        dtype = cache_ptr.dtype.element_ty
        new_ptr = qkv_ptr + (H - head + kv_head) * D
        k = _positioned(new_ptr, cos_ptr, sin_ptr, position, d, D, QK_NORM, EPS, ACC)
        k, v = k.to(dtype), tl.load(new_ptr + HKV * D + d, d < D, other=0)
        if head % (H // HKV) == 0:
            tl.store(k_ptr + position * D + d, k, d < D)
            tl.store(v_ptr + position * D + d, v, d < D)
        s = sum_of_products(q, k.to(ACC), 0) * (SCALE * LOG2_E)
        m_new = tl.maximum(m, s)
        p = tl.exp2(s - m_new)
        alpha = tl.exp2(m - m_new)
        z = z * alpha + p
        acc = acc * alpha + p * v.to(ACC)
        m = m_new

    # --- output ---
    row = (part * B + batch) * H + head
    if m_ptr is None:
        acc /= z
    else:
        tl.store(m_ptr + row, m)
        tl.store(z_ptr + row, z)
    tl.store(out_ptr + row * D + d, acc.to(out_ptr.dtype.element_ty), d < D)


@triton.jit
def _positioned(
    x_ptr,  # (D,)
    cos_ptr,  # (T, D) or None
    sin_ptr,  # (T, D) or None
    position,
    d,  # (BLOCK_D,)
    D: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The query or key (BLOCK_D,), RMS-normalised if NORM and rotated unless cos_ptr is None."""
    x = tl.load(x_ptr + d, d < D, other=0).to(ACC)
    rstd = tl.rsqrt(sum_of_products(x, x, 0) / D + EPS) if NORM else 1.0
    x *= rstd
    if cos_ptr is not None:
        at = position * D + d
        other = tl.load(x_ptr + (d + D // 2) % D).to(ACC) * rstd
        x *= tl.load(cos_ptr + at, d < D, other=0).to(ACC)
        x += other * tl.load(sin_ptr + at, d < D, other=0).to(ACC)
    return x


@triton.jit
def decode_attention_combine_kernel(
    parts_ptr,  # (PARTS, B, H, D)
    m_ptr,  # (PARTS, B, H)
    z_ptr,  # (PARTS, B, H)
    out_ptr,  # (B, H, D)
    rows,  # B * H
    PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    OVERLAPPED: tl.constexpr,
):  # fmt: skip
    if OVERLAPPED:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    part, d = tl.arange(0, BLOCK_PARTS), tl.arange(0, BLOCK_D)
    at = part * rows + row
    m = tl.load(m_ptr + at, part < PARTS, other=float("-inf"))  # (BLOCK_PARTS,)
    z = tl.load(z_ptr + at, part < PARTS, other=0)
    inside = (part < PARTS)[:, None] & (d < D)[None, :]
    acc = tl.load(parts_ptr + at[:, None] * D + d[None, :], inside, other=0)
    weight = tl.exp2(m - tl.max(m, 0))  # 0 for a part without keys
    out = sum_of_products(acc, weight[:, None], 0) / sum_of_products(z, weight, 0)
    tl.store(out_ptr + row * D + d, out.to(out_ptr.dtype.element_ty), d < D)


def _empty(qkv, cache, *_):
    _, B, HKV, _, D = cache.shape
    return qkv.new_empty((B, qkv.shape[1] - 2 * HKV * D))


def _decode_attention(qkv, cache, position, cos, sin, window, qk_norm, eps):
    _, B, HKV, T, D = cache.shape
    out = _empty(qkv, cache)
    H = out.shape[1] // D
    qkv, position = qkv.contiguous(), position.contiguous()
    cos, sin = (table if table is None else table.contiguous() for table in (cos, sin))
    window = window if window < T else 0
    constants = {"SCALE": D**-0.5, "EPS": eps, "QK_NORM": qk_norm, "WINDOW": window}
    elements, keys, programs = tile("decode_attention", qkv.device)
    BLOCK_D = next_power_of_2(D)
    part = max(keys, next_power_of_2(cdiv(T, MOST_PARTS)))
    parts = cdiv(T, part)
    rows = B * H
    if parts == 1 or rows >= programs:
        parts, part, partial, m, z = 1, next_power_of_2(T), out, None, None
    else:
        wide = {"dtype": accumulator(qkv.dtype), "device": qkv.device}
        partial = torch.empty((parts, B, H, D), **wide)
        m, z = torch.empty((2, parts, B, H), **wide)
    constants |= {"H": H, "HKV": HKV, "D": D, "BLOCK_D": BLOCK_D, "PART": part, "num_warps": 4}
    constants["KEYS"] = min(elements // BLOCK_D, keys, part)
    constants |= {"ACC": triton_accumulator(qkv.dtype)} | overlapped(qkv.device)
    operands = qkv, cache, position, cos, sin, partial, m, z, B, T
    launch(decode_attention_kernel, (rows, parts), *operands, **constants)
    if parts > 1:
        combined = {"PARTS": parts, "BLOCK_PARTS": next_power_of_2(parts)}
        combined |= {"D": D, "BLOCK_D": BLOCK_D, "num_warps": 4} | overlapped(qkv.device)
        launch(decode_attention_combine_kernel, (rows,), partial, m, z, out, rows, **combined)
    return out


_operator = register(
    "decode_attention(Tensor qkv, Tensor(a!) cache, Tensor position, Tensor? cos, Tensor? sin, "
    "int window, bool qk_norm, float eps) -> Tensor",
    _decode_attention,
    _empty,
)


def decode_attention(
    qkv: torch.Tensor,
    cache: torch.Tensor,
    position: torch.Tensor,
    *,
    window: int = 0,
    qk_norm: bool = False,
    eps: float = 1e-5,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one new token of each row over the cache, to which it is added, no gradients.

    qkv (B, (H + 2 Hkv) D), cache (2, B, Hkv, T, D), position (B,) int64, cos and sin (T, D) or None
    -> (B, H D). The new key and value are written to the cache at `position`, and the query sees
    all positions up to it, or with a window W > 0 the last W. Other options are those of
    `attention_qkv`. Raises ValueError if shapes, dtypes or options do not fit.
    """
    form = "qkv (B, C), cache (2, B, Hkv, T, D), position (B,) int64, cos (T, D), sin (T, D)"
    check_operands("decode_attention", form, qkv, cache, position, cos, sin)
    _, _, Hkv, _, D = cache.shape
    width = Hkv * D
    if width == 0 or qkv.shape[1] % width or qkv.shape[1] < 3 * width:
        raise ValueError(
            f"decode_attention: qkv {tuple(qkv.shape)} does not fit Hkv = {Hkv} and D = {D}; give "
            "(B, (H + 2 Hkv) D) with H a multiple of Hkv"
        )
    if qkv.dtype != cache.dtype or not cache.is_contiguous():
        raise ValueError(
            f"decode_attention: the cache is {cache.dtype} with strides {cache.stride()}; give a "
            f"contiguous cache of qkv's dtype, {qkv.dtype}"
        )
    if D > LARGEST_HEAD or (cos is not None and D % 2):
        raise ValueError(
            f"decode_attention: D is {D}; give heads of 1 to {LARGEST_HEAD} channels, and with "
            "cos and sin an even D"
        )
    if (cos is None) != (sin is None):
        raise ValueError("decode_attention: give both cos and sin, or neither")
    if window < 0:
        raise ValueError(f"decode_attention: window is {window}; give at least 1 key, or 0 for all")
    function = _operator if is_traced() else _decode_attention
    return function(qkv, cache, position, cos, sin, window, qk_norm, eps)
