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
from .rotary import rotary_backward, rotary_forward
from .scores import (
    BOTTOM_RIGHT,
    LOG2_E,
    batch_stride,
    constants_of,
    is_seen,
    keys_seen,
    products,
    read,
    read_ranges,
    scheduled,
    tile_pointers,
    tiled,
    together,
)


@triton.jit(do_not_specialize=["H", "together"])
def attention_forward_kernel(
    out_ptr,  # (B, H, Tq, D)
    statistics_ptr,  # (1 or 2, B, H, Tq)
    q_ptr,  # (B, H, Tq, D)
    k_ptr,  # (B, Hkv, Tk, D)
    v_ptr,  # (B, Hkv, Tk, D)
    seed_ptr,  # () or None
    ranges_ptr,  # (B, Tq, 2): the keys that each row may see; or None
    stride_outb, stride_outh, stride_outt,
    stride_qb, stride_qh, stride_qt,
    stride_kb, stride_kh, stride_kt,
    stride_vb, stride_vh, stride_vt,
    H, Tq, Tk, together, stride_rangesb,
    SCALE: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, UNSEEING: tl.constexpr,
    THRESHOLD: tl.constexpr, KEEP_SCALE: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, EVEN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = q_ptr.dtype.element_ty.primitive_bitwidth >= 32
    FACTOR: tl.constexpr = SCALE * LOG2_E
    tiles = tl.cdiv(Tq, M)
    order, head, batch = scheduled(tiles, H, together)
    first_row = (tiles - 1 - order) * M  # rows that see the most keys first
    row, d = first_row + tl.arange(0, M), tl.arange(0, BLOCK_D)
    is_d = (d < D)[None, :]
    inside = None if EVEN else (row < Tq)[:, None] & is_d
    long_row = row.to(tl.int64)[:, None]
    offset = Tk - Tq if CAUSAL == BOTTOM_RIGHT else 0  # of the diagonal

    # --- the tile of rows ---
    q_ptr += batch * stride_qb + head * stride_qh
    q = read(q_ptr + long_row * stride_qt + d[None, :], inside)  # (M, D)
    k_tile = tile_pointers(k_ptr + batch * stride_kb + head // GROUP * stride_kh, stride_kt, N, d)
    v_tile = tile_pointers(v_ptr + batch * stride_vb + head // GROUP * stride_vh, stride_vt, N, d)
    seed = tl.load(seed_ptr) if THRESHOLD > 0 else 0
    m = tl.full((M,), float("-inf"), ACC)
    z = tl.zeros((M,), ACC)
    acc = tl.zeros((M, BLOCK_D), ACC)
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
        k = read(k_tile + tl.cast(first_key, tl.int64) * stride_kt, inside_k)  # (N, D)
        v = read(v_tile + tl.cast(first_key, tl.int64) * stride_vt, inside_k)  # (N, D)
        s = products(q, k, ACC)  # (M, N)
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
    tl.store(out_ptr + long_row * stride_outt + d[None, :], out, inside)
    at = (batch * H + head) * Tq + row
    tl.store(statistics_ptr + at, m if WIDE else m + tl.log2(z), row < Tq)
    if WIDE:
        tl.store(statistics_ptr + tl.num_programs(0) // tiles * Tq + at, z, row < Tq)


class Attention(torch.autograd.Function):
    """q (B, H, Tq, D), k and v (B, Hkv, Tk, D) -> (B, H, Tq, D), and one gradient for each.

    The options are causal, window, dropout_p and scale.
    """

    @staticmethod
    def forward(ctx, q, k, v, seed, of_rows, of_keys, *options):
        q, k, v = _whole_rows(q), _whole_rows(k), _whole_rows(v)
        out = _empty_like(q)
        statistics = _launch_forward(out, q, k, v, seed, of_rows, options)
        ctx.save_for_backward(q, k, v, out, statistics, seed, of_rows, of_keys)
        ctx.options = options
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        q, k, v, *others = ctx.saved_tensors
        dq, dk, dv = _empty_like(q), _empty_like(k), _empty_like(v)
        attention_backward(dq, dk, dv, _whole_rows(dout), q, k, v, *others, ctx.options)
        return dq, dk, dv, *(3 + len(ctx.options)) * (None,)


class PackedAttention(torch.autograd.Function):
    """[query | key | value] (B, T, (H + 2 Hkv) D) -> (B, T, H D), with one packed gradient.

    With `qk_norm` or angles, queries and keys are first normalised and rotated (`rotary.py`). The
    options are those of `Attention`.
    """

    @staticmethod
    def forward(ctx, qkv, cos, sin, seed, of_rows, of_keys, H, Hkv, qk_norm, eps, *options):
        qkv, qk = _whole_rows(qkv), None
        q, k, v = _heads(qkv, H, Hkv, Hkv)
        if qk_norm or cos is not None:
            qk = rotary_forward(qkv, (H, Hkv, Hkv), (qk_norm, eps, cos, sin))
            q, k = _heads(qk, H, Hkv)
        out = qkv.new_empty((*qkv.shape[:2], H * q.shape[-1]))
        statistics = _launch_forward(*_heads(out, H), q, k, v, seed, of_rows, options)
        ctx.save_for_backward(qkv, qk, cos, sin, out, statistics, seed, of_rows, of_keys)
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
        attention_backward(dq, dk, dv, dout, q, k, v, out, *others, ctx.options)
        if qk is not None:
            rotary_backward(dqk, qkv, dqkv, (H, Hkv, Hkv), (*ctx.norm, cos, sin))
        return dqkv, *(9 + len(ctx.options)) * (None,)


def _launch_forward(out, q, k, v, seed, of_rows, options):
    """Fill `out` and return the statistics of its rows. All last strides are 1."""
    B, H, Tq, _ = q.shape
    constants = constants_of(q, k, of_rows, options)
    kinds = 1 if q.element_size() == 2 else 2  # m + log2 z; m and z
    statistics = torch.empty((kinds, B, H, Tq), dtype=accumulator(q.dtype), device=q.device)
    more = constants["WINDOW"] or constants["THRESHOLD"] or of_rows is not None
    variant = ("causal_more" if more else "causal") if constants["CAUSAL"] else ""
    tile = tiled("attention", variant, q, k, constants)
    grid = (cdiv(Tq, tile["M"]) * H * B,)
    strides = [stride for x in (out, q, k, v) for stride in x.stride()[:3]]
    tensors = out, statistics, q, k, v, seed, of_rows
    sizes = H, Tq, k.shape[2], together(k), batch_stride(of_rows)
    launch(attention_forward_kernel, grid, *tensors, *strides, *sizes, **tile)
    return statistics


def _empty_like(x):
    """Allocate (B, H, T, D) with the memory order (B, T, H, D), which joins the heads for free."""
    B, H, T, D = x.shape
    return x.new_empty((B, T, H, D)).transpose(1, 2)


def _heads(x, *counts):
    """Views (B, heads, T, D) of x (B, T, C), whose channels are groups of `counts` heads."""
    return x.unflatten(-1, (sum(counts), -1)).transpose(1, 2).split(counts, dim=1)


def _whole_rows(x):
    """x with its last dimension contiguous, copied only if necessary."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _checked_ranges(operation, ranges, B, Tq, Tk):
    """`of_rows` and `of_keys` with B batches of whole rows, or None twice."""
    checked = []
    for x, name, T in zip(ranges or (), KeyRanges._fields, (Tq, Tk), strict=bool(ranges)):
        if x.dtype != torch.int32 or x.shape not in ((B, T, 2), (1, T, 2)):
            raise ValueError(
                f"{operation}: {name} of the ranges is {x.dtype} {tuple(x.shape)}; give int32 "
                f"({B} or 1, {T}, 2)"
            )
        checked.append(x.contiguous().expand(B, T, 2))
    return checked or (None, None)


@opaque
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool | Literal["top_left", "bottom_right"] = True,
    window: int = 0,
    ranges: KeyRanges | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(scale q k^T) v with dropout on the weights, (B, H, Tq, D); see `kernels.Ops`.

    Causality counts rows and keys from 0, also if Tq and Tk differ.
    """
    q, k, v = (x.to(autocast_dtype(x) or x.dtype) for x in (q, k, v))
    form = "q (B, H, Tq, D), k (B, Hkv, Tk, D), v (B, Hkv, Tk, D)"
    check_operands("attention", form, q, k, v, one_dtype=True)
    shapes = f"q {tuple(q.shape)} and k {tuple(k.shape)}"
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"attention: H is not a multiple of Hkv in {shapes}")
    seed = seed_of_call(seed, dropout_p, q.device)
    ranges = _checked_ranges("attention", ranges, q.shape[0], q.shape[2], k.shape[2])
    return Attention.apply(q, k, v, seed, *ranges, causal, window, dropout_p, scale)


@opaque
def attention_qkv(
    qkv: torch.Tensor,
    n_head: int,
    *,
    n_kv_head: int | None = None,
    causal: bool | Literal["top_left", "bottom_right"] = True,
    window: int = 0,
    ranges: KeyRanges | None = None,
    qk_norm: bool = False,
    eps: float = 1e-5,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of a packed projection [query | key | value], (B, T, H D); see `kernels.Ops`."""
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
    options = causal, window, dropout_p, scale
    B, T, _ = qkv.shape
    ranges = _checked_ranges("attention_qkv", ranges, B, T, T)
    return PackedAttention.apply(qkv, cos, sin, seed, *ranges, H, Hkv, qk_norm, eps, *options)
