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
- From sm_90 on, a program that visits many tiles reads them through descriptors (TMA): one thread
  copies a tile, without addresses and masks. It makes the descriptors itself, which takes time.
- Saved for backward: out, and m + log2 z in fp32, or for fp32 and fp64 operands m and z, so memory
  grows with T and not with T^2. `scores.py` says why these two are kept apart.

The backward is in `attention_backward.py`.

Letters: B batch, H heads, Hkv heads of keys and values, T time, D head size.
"""

import triton
import triton.language as tl

from ..common.launch import cdiv, launch
from ..common.philox import keep_in_tile
from ..common.softcap import LOG2_E, tanh
from .options import batch_stride, grouped, tiled
from .scores import (
    BOTTOM_RIGHT,
    is_seen,
    keys_seen,
    products,
    read,
    read_ranges,
    read_tile,
    scheduled,
    tiles_of,
)


@triton.jit(do_not_specialize=["H"])
def attention_forward_kernel(
    out_ptr,  # (B, H, Tq, Dv)
    statistics_ptr,  # (1 or 2, B, H, Tq)
    q_ptr,  # (B, H, Tq, D)
    k_ptr,  # (B, Hkv, Tk, D)
    v_ptr,  # (B, Hkv, Tk, Dv)
    seed_ptr,  # () or None
    ranges_ptr,  # (B, Tq, 2): the keys that each row may see; or None
    stride_outb, stride_outh, stride_outt,
    stride_qb, stride_qh, stride_qt,
    stride_kb, stride_kh, stride_kt,
    stride_vb, stride_vh, stride_vt,
    H, Tq, Tk, stride_rangesb,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    UNSEEING: tl.constexpr, THRESHOLD: tl.constexpr, KEEP_SCALE: tl.constexpr, GROUP: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, EVEN: tl.constexpr, DESCRIBED: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = q_ptr.dtype.element_ty.primitive_bitwidth >= 32
    FACTOR: tl.constexpr = (1.0 if SOFTCAP > 0 else SCALE) * LOG2_E  # of S, for logits in base 2
    pairs, order, head, batch = scheduled(H)
    first_row = (tl.num_programs(1) - 1 - order) * M  # rows that see the most keys first
    row, d, e = first_row + tl.arange(0, M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    is_d, is_e = (d < D)[None, :], (e < DV)[None, :]
    inside = None if EVEN else (row < Tq)[:, None] & is_d
    long_row = row.to(tl.int64)[:, None]
    offset = Tk - Tq if CAUSAL == BOTTOM_RIGHT else 0  # of the diagonal

    # --- the tile of rows ---
    q_ptr += batch * stride_qb + head * stride_qh
    q = read(q_ptr + long_row * stride_qt + d[None, :], inside)  # (M, D)
    k_ptr += batch * stride_kb + head // GROUP * stride_kh
    v_ptr += batch * stride_vb + head // GROUP * stride_vh
    k_tiles = tiles_of(k_ptr, Tk, stride_kt, d, N, D, DESCRIBED)
    v_tiles = tiles_of(v_ptr, Tk, stride_vt, e, N, DV, DESCRIBED)
    seed = tl.load(seed_ptr) if THRESHOLD > 0 else 0
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
        k = read_tile(k_tiles, first_key, stride_kt, inside_k, DESCRIBED)  # (N, D)
        v = read_tile(v_tiles, first_key, stride_vt, inside_v, DESCRIBED)  # (N, DV)
        s = products(q, k, ACC)  # (M, N)
        if SOFTCAP > 0:
            s = SOFTCAP * tanh(s * (SCALE / SOFTCAP))
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
    if UNSEEING:  # 0 for a row that sees no key; the backward pass masks its P
        z = tl.where(z == 0.0, 1.0, z)
    out_ptr += batch * stride_outb + head * stride_outh
    out = (acc * (KEEP_SCALE / z)[:, None]).to(out_ptr.dtype.element_ty)
    inside = None if EVEN else (row < Tq)[:, None] & is_e
    tl.store(out_ptr + long_row * stride_outt + e[None, :], out, inside)
    at = (batch * H + head) * Tq + row
    tl.store(statistics_ptr + at, m if WIDE else m + tl.log2(z), row < Tq)
    if WIDE:
        tl.store(statistics_ptr + pairs * Tq + at, z, row < Tq)


def attention_forward(out, statistics, q, k, v, seed, of_rows, options):
    """Fill `out` and the statistics of its rows. All last strides are 1."""
    B, H, Tq, _ = q.shape
    tile = tiled("attention", q, k, v, of_rows, options, (k, v))
    grid = grouped(k, B * H, cdiv(Tq, tile["M"]))
    strides = [stride for x in (out, q, k, v) for stride in x.stride()[:3]]
    tensors = out, statistics, q, k, v, seed, of_rows
    sizes = H, Tq, k.shape[2], batch_stride(of_rows)
    launch(attention_forward_kernel, grid, *tensors, *strides, *sizes, **tile)
