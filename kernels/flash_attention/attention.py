"""Causal self-attention, one tile of rows at a time, with dropout on the attention weights.

    S = scale Q K^T, -inf where a row may not see a key   (causal: key <= row;
                                                           a window of W: row - W < key <= row)
    P = softmax(S)                                        out = dropout(P) V

The (T, T) matrices are never stored. One program holds M rows of Q and visits tiles of N keys, with
a running maximum m and a running sum z per row (FlashAttention-2, Dao 2023):

    m_new = max(m, max S)      alpha = 2^(m - m_new)        p = 2^(S - m_new)
    z = alpha z + sum p        acc = alpha acc + keep p V   m = m_new
    out = acc / (1 - dropout_p) / z

- Everything is in base 2, with log2(e) folded into the scale: the hardware has exp2 and not exp.
- z sums p before dropout, as the lecture normalises before dropout.
- One loop visits all tiles of keys; only those on the diagonal, at the edge of the window or past
  the last key enter the branch that masks. With two loops ptxas would wait for every product of the
  tensor cores.
- With a window the loop starts at its first tile, so time grows with T W and not with T^2.
- Saved for backward: out, and m + log2 z in fp32, or for fp32 and fp64 operands m and z, so memory
  grows with T and not with T^2. `scores.py` says why these two are kept apart.

`attention` takes any strides. `attention_qkv` runs the same kernels on views of the packed
projection, and its backward writes one packed gradient, so that nothing is transposed or copied.
The backward is in `attention_backward.py`.

Letters: B batch, H heads, Hkv heads of keys and values, T time, D head size.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from ..common.dtypes import accumulator, autocast_dtype
from ..common.launch import cdiv, launch, opaque
from ..common.operands import check_operands
from ..common.philox import keep_in_tile, seed_of_call
from ..key_ranges import KeyRanges
from .attention_backward import attention_backward
from .options import batch_stride, checked_ranges, checked_slopes, tiled, together
from .rotary import rotary_backward, rotary_forward
from .scores import (
    BOTTOM_RIGHT,
    LOG2_E,
    add_alibi,
    is_seen,
    keys_seen,
    products,
    read,
    read_ranges,
    scheduled,
    tanh,
    tile_pointers,
)


@triton.jit(do_not_specialize=["H", "together"])
def attention_forward_kernel(
    out_ptr,  # (B, H, Tq, Dv)
    statistics_ptr,  # (1 or 2, B, H, Tq)
    q_ptr,  # (B, H, Tq, D)
    k_ptr,  # (B, Hkv, Tk, D)
    v_ptr,  # (B, Hkv, Tk, Dv)
    seed_ptr,  # () or None
    slopes_ptr,  # (H,) or None
    ranges_ptr,  # (B, Tq, 2): the keys that each row may see; or None
    stride_outb, stride_outh, stride_outt,
    stride_qb, stride_qh, stride_qt,
    stride_kb, stride_kh, stride_kt,
    stride_vb, stride_vh, stride_vt,
    H, Tq, Tk, together, stride_rangesb,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    UNSEEING: tl.constexpr, THRESHOLD: tl.constexpr, KEEP_SCALE: tl.constexpr, GROUP: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, EVEN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = q_ptr.dtype.element_ty.primitive_bitwidth >= 32
    UNIT: tl.constexpr = 1.0 if SOFTCAP > 0 else SCALE  # logits = UNIT S
    FACTOR: tl.constexpr = UNIT * LOG2_E
    tiles = tl.cdiv(Tq, M)
    order, head, batch = scheduled(tiles, H, together)
    first_row = (tiles - 1 - order) * M  # rows that see the most keys first
    row, d, e = first_row + tl.arange(0, M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    is_d, is_e = (d < D)[None, :], (e < DV)[None, :]
    inside = None if EVEN else (row < Tq)[:, None] & is_d
    long_row = row.to(tl.int64)[:, None]
    offset = Tk - Tq if CAUSAL == BOTTOM_RIGHT else 0  # of the diagonal

    # --- the tile of rows ---
    q_ptr += batch * stride_qb + head * stride_qh
    q = read(q_ptr + long_row * stride_qt + d[None, :], inside)  # (M, D)
    k_tile = tile_pointers(k_ptr + batch * stride_kb + head // GROUP * stride_kh, stride_kt, N, d)
    v_tile = tile_pointers(v_ptr + batch * stride_vb + head // GROUP * stride_vh, stride_vt, N, e)
    seed = tl.load(seed_ptr) if THRESHOLD > 0 else 0
    slope = tl.load(slopes_ptr + head).to(ACC) / UNIT if slopes_ptr is not None else 0
    m = tl.full((M,), float("-inf"), ACC)
    z = tl.zeros((M,), ACC)
    acc = tl.zeros((M, BLOCK_DV), ACC)
    row_begin, row_end = None, None
    if ranges_ptr is not None:
        ranges_ptr += batch * stride_rangesb
        row_begin, row_end = read_ranges(ranges_ptr, tl.minimum(row, Tq - 1))
    begin, end, begin_of_all, end_of_all = keys_seen(
        first_row + offset, Tk, row_begin, row_end, CAUSAL, WINDOW, M, N
    )
    # --- every tile of keys ---
    for first_key in tl.range(begin, end, N):
        key = first_key + tl.arange(0, N)
        inside_k = None if EVEN else (key < Tk)[:, None] & is_d
        inside_v = None if EVEN else (key < Tk)[:, None] & is_e
        k = read(k_tile + tl.cast(first_key, tl.int64) * stride_kt, inside_k)  # (N, D)
        v = read(v_tile + tl.cast(first_key, tl.int64) * stride_vt, inside_v)  # (N, DV)
        s = products(q, k, ACC)  # (M, N)
        if SOFTCAP > 0:
            s = SOFTCAP * tanh(s * (SCALE / SOFTCAP))
        if slopes_ptr is not None:
            s = add_alibi(s, slope, row + offset, key, 1)
        # mask the diagonal, the edge of the window and what is past the last key
        masked = first_key + N > end_of_all
        if WINDOW > 0 or ranges_ptr is not None:
            masked |= first_key < begin_of_all
        if masked:
            seen = (key < Tk)[None, :]
            seen &= is_seen(row + offset, key, row_begin, row_end, CAUSAL, WINDOW, 1)
            s = tl.where(seen, s, float("-inf"))
        # update the softmax
        m_new = tl.maximum(m, tl.max(s, 1) if WIDE else tl.max(s, 1) * FACTOR)
        shift = m_new
        if WINDOW > 0 or UNSEEING:  # no key of the row so far: avoid -inf - -inf
            shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        if WIDE:
            p, alpha = tl.exp2((s - shift[:, None]) * FACTOR), tl.exp2((m - shift) * FACTOR)
        else:
            p, alpha = tl.exp2(s * FACTOR - shift[:, None]), tl.exp2(m - shift)
        z = z * alpha + tl.sum(p, 1)
        if THRESHOLD > 0:
            keep = keep_in_tile(seed, head, batch, first_row, first_key, THRESHOLD, M, N)
            p = tl.where(keep, p, 0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision="ieee", out_dtype=ACC)
        m = m_new

    # --- output ---
    if UNSEEING:  # 0 for a row that sees no key, and P = 2^(S - inf) = 0 in the backward pass
        m, z = tl.where(z == 0.0, float("inf"), m), tl.where(z == 0.0, 1.0, z)
    out_ptr += batch * stride_outb + head * stride_outh
    out = (acc * (KEEP_SCALE / z)[:, None]).to(out_ptr.dtype.element_ty)
    inside = None if EVEN else (row < Tq)[:, None] & is_e
    tl.store(out_ptr + long_row * stride_outt + e[None, :], out, inside)
    at = (batch * H + head) * Tq + row
    tl.store(statistics_ptr + at, m if WIDE else m + tl.log2(z), row < Tq)
    if WIDE:
        tl.store(statistics_ptr + tl.num_programs(0) // tiles * Tq + at, z, row < Tq)


class Attention(torch.autograd.Function):
    """q (B, H, Tq, D), k (B, Hkv, Tk, D), v (B, Hkv, Tk, Dv) -> (B, H, Tq, Dv), with gradients.

    The options are causal, window, softcap, dropout_p and scale.
    """

    @staticmethod
    def forward(ctx, q, k, v, seed, slopes, of_rows, of_keys, *options):
        q, k, v = _whole_rows(q), _whole_rows(k), _whole_rows(v)
        out = _empty_like(q, v.shape[3])
        statistics = _launch_forward(out, q, k, v, seed, slopes, of_rows, options)
        ctx.save_for_backward(q, k, v, out, statistics, seed, slopes, of_rows, of_keys)
        ctx.options = options
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        q, k, v, *others = ctx.saved_tensors
        gradients = [_empty_like(x, x.shape[3]) for x in (q, k, v)]
        attention_backward(gradients, _whole_rows(dout), q, k, v, *others, ctx.options)
        return *gradients, *(4 + len(ctx.options)) * (None,)


class PackedAttention(torch.autograd.Function):
    """[query | key | value] (B, T, (H + 2 Hkv) D) -> (B, T, H D), with one packed gradient.

    With `qk_norm` or angles, queries and keys are first normalised and rotated (`rotary.py`). The
    options are those of `Attention`.
    """

    @staticmethod
    def forward(ctx, qkv, cos, sin, seed, slopes, of_rows, of_keys, H, Hkv, qk_norm, eps, *options):
        qkv, qk = _whole_rows(qkv), None
        q, k, v = _heads(qkv, H, Hkv, Hkv)
        if qk_norm or cos is not None:
            qk = rotary_forward(qkv, (H, Hkv, Hkv), (qk_norm, eps, cos, sin))
            q, k = _heads(qk, H, Hkv)
        out = qkv.new_empty((*qkv.shape[:2], H * q.shape[-1]))
        statistics = _launch_forward(*_heads(out, H), q, k, v, seed, slopes, of_rows, options)
        ctx.save_for_backward(qkv, qk, cos, sin, out, statistics, seed, slopes, of_rows, of_keys)
        ctx.heads, ctx.norm, ctx.options = (H, Hkv), (qk_norm, eps), options
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        qkv, qk, cos, sin, out, *others = ctx.saved_tensors
        H, Hkv = ctx.heads
        dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
        (q, k, v), (dq, dk, dv) = _heads(qkv, H, Hkv, Hkv), _heads(dqkv, H, Hkv, Hkv)
        if qk is not None:
            dqk = torch.empty_like(qk)
            (q, k), (dq, dk) = _heads(qk, H, Hkv), _heads(dqk, H, Hkv)
        (dout,), (out,) = _heads(_whole_rows(dout), H), _heads(out, H)
        attention_backward((dq, dk, dv), dout, q, k, v, out, *others, ctx.options)
        if qk is not None:
            rotary_backward(dqk, qkv, dqkv, (H, Hkv, Hkv), (*ctx.norm, cos, sin))
        return dqkv, *(10 + len(ctx.options)) * (None,)


def _launch_forward(out, q, k, v, seed, slopes, of_rows, options):
    """Fill `out` and return the statistics of its rows. All last strides are 1."""
    B, H, Tq, _ = q.shape
    kinds = 1 if q.element_size() == 2 else 2  # m + log2 z; m and z
    statistics = torch.empty((kinds, B, H, Tq), dtype=accumulator(q.dtype), device=q.device)
    tile = tiled("attention", q, k, v, slopes, of_rows, options)
    grid = (cdiv(Tq, tile["M"]) * H * B,)
    strides = [stride for x in (out, q, k, v) for stride in x.stride()[:3]]
    tensors = out, statistics, q, k, v, seed, slopes, of_rows
    sizes = H, Tq, k.shape[2], together(k), batch_stride(of_rows)
    launch(attention_forward_kernel, grid, *tensors, *strides, *sizes, **tile)
    return statistics


def _empty_like(x, D):
    """Allocate (B, H, T, D) with the memory order (B, T, H, D), which joins the heads for free."""
    B, H, T, _ = x.shape
    return x.new_empty((B, T, H, D)).transpose(1, 2)


def _heads(x, *counts):
    """Views (B, heads, T, D) of x (B, T, C), whose channels are groups of `counts` heads."""
    return x.unflatten(-1, (sum(counts), -1)).transpose(1, 2).split(counts, dim=1)


def _whole_rows(x):
    """x with its last dimension contiguous, copied only if necessary."""
    return x if x.stride(-1) == 1 else x.contiguous()


@opaque
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool | Literal["top_left", "bottom_right"] = True,
    window: int = 0,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    ranges: KeyRanges | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(scale q k^T) v: q (B, H, Tq, D), k (B, Hkv, Tk, D), v (B, Hkv, Tk, Dv) -> (..., Dv).

    Query head h reads keys and values of head h // (H / Hkv). A row that sees no key gives 0.
    causal: True or "top_left": row t sees keys 0 to t. "bottom_right": 0 to t + Tk - Tq, as in
        FlashAttention. False: all keys, the default of `scaled_dot_product_attention`.
    window: W > 0: of these keys only the last W.
    softcap: c > 0: logits x become c tanh(x / c) (Gemma 2, 2024).
    alibi_slopes: (H,): adds -slope |t - key|, or -slope |t + Tk - Tq - key| with "bottom_right"
        (Press et al. 2022). They have no gradient.
    ranges: the keys that each row may see: its own document, or what is not padding.
    dropout_p: probability of dropping a weight; the others are scaled by 1 / (1 - dropout_p).
    scale: 1 / sqrt(D) if None.
    seed: () int64 of the dropout, drawn from the device's generator if None.

    ValueError: shapes that do not fit, operands of several dtypes or of another than fp16, bf16,
    fp32 and fp64, heads wider than 256, and options out of range.
    """
    q, k, v = (x.to(autocast_dtype(x) or x.dtype) for x in (q, k, v))
    form = "q (B, H, Tq, D), k (B, Hkv, Tk, D), v (B, Hkv, Tk, Dv)"
    check_operands("attention", form, q, k, v, one_dtype=True)
    shapes = f"q {tuple(q.shape)} and k {tuple(k.shape)}"
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"attention: H is not a multiple of Hkv in {shapes}")
    seed = seed_of_call(seed, dropout_p, q.device)
    ranges = checked_ranges("attention", ranges, q.shape[0], q.shape[2], k.shape[2])
    slopes = checked_slopes("attention", alibi_slopes, q.shape[1])
    options = causal, window, softcap, dropout_p, scale
    return Attention.apply(q, k, v, seed, slopes, *ranges, *options)


@opaque
def attention_qkv(
    qkv: torch.Tensor,
    n_head: int,
    *,
    n_kv_head: int | None = None,
    causal: bool | Literal["top_left", "bottom_right"] = True,
    window: int = 0,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    ranges: KeyRanges | None = None,
    qk_norm: bool = False,
    eps: float = 1e-5,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of a packed projection [query | key | value], (B, T, (H + 2 Hkv) D) -> (B, T, H D).

    n_head: H. n_kv_head: Hkv, H if None.
    qk_norm: RMS-normalise queries and keys over D, with `eps`.
    cos, sin: (>= T, D): then rotate each query and key x to x cos + roll(x, D / 2) sin (RoFormer,
        Su et al. 2021); both or neither.

    The other options, and the errors, are those of `attention`.
    """
    qkv = qkv.to(autocast_dtype(qkv) or qkv.dtype)
    counts = (n_head, *[n_head if n_kv_head is None else n_kv_head] * 2)  # heads of q, k, v
    form = "qkv (B, T, C), cos (>= T, D), sin (>= T, D)"
    check_operands("attention_qkv", form, qkv, cos, sin)
    C, H, Hkv = qkv.shape[-1], *counts[:2]
    if min(counts) < 1 or H % Hkv or C % sum(counts):
        raise ValueError(
            f"attention_qkv: qkv {tuple(qkv.shape)} does not fit H = {H} and Hkv = {Hkv}; give "
            "(B, T, (H + 2 Hkv) D) with H a multiple of Hkv"
        )
    D = C // sum(counts)
    if (cos is None) != (sin is None) or (cos is not None and (D % 2 or cos.shape[1] != D)):
        tables = " and ".join(str(x if x is None else tuple(x.shape)) for x in (cos, sin))
        raise ValueError(
            f"attention_qkv: cos and sin are {tables} for D = {D}; give both (>= T, D) with an "
            "even D, or neither"
        )
    cos, sin = (x if x is None else x.contiguous() for x in (cos, sin))
    seed = seed_of_call(seed, dropout_p, qkv.device)
    slopes = checked_slopes("attention_qkv", alibi_slopes, H)
    options = causal, window, softcap, dropout_p, scale
    B, T, _ = qkv.shape
    ranges = checked_ranges("attention_qkv", ranges, B, T, T)
    tensors = qkv, cos, sin, seed, slopes, *ranges
    return PackedAttention.apply(*tensors, H, Hkv, qk_norm, eps, *options)
