"""Gradients of attention, in two kernels that recompute P from the saved statistics of its rows.

    P_drop = keep P / (1 - p)             out   = P_drop V
    dV     = P_drop^T dout                dP    = keep (dout V^T) / (1 - p)
    dS     = P (dP - delta)               delta = rowsum(dout out), equal to rowsum(P dP)
    dQ     = scale dS K                   dK    = scale dS^T Q

The kernels compute (1 - p) times dP, delta and dS, and divide dQ and dK by 1 - p at the end.

- The "q" kernel owns a tile of rows and visits keys, the "kv" kernel owns a tile of keys and visits
  rows. Computing S in both costs two products more than accumulating dQ over all programs, but one
  program makes every sum in one order: no atomics, the same bits every time.
- The "q" kernel runs first and writes delta, because it holds whole rows of dout and out.
- The "kv" kernel computes S^T = K Q^T, so that P^T and dS^T in registers are left operands and no
  accumulator has to be transposed.
- Both visit only tiles in which some row sees some key.
- Rows past Tq are read as zeros, also in dout and delta, so they add exactly 0 to dK and dV. Keys
  past Tk add 0 to dQ because P is set to 0 there (their P might overflow).
- With fp32 or fp64 operands (`WIDE`) delta is the sum of P dP, for which the "q" kernel visits all
  keys once more: `scores.py` gives the reason.
"""

import torch
import triton
import triton.language as tl

from ..common.launch import cdiv, launch
from ..common.philox import keep_in_tile
from ..common.softcap import LOG2_E, tanh
from ..common.sums import sum_of_products
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
    weights,
)


@triton.jit(do_not_specialize=["H"])
def attention_backward_q_kernel(
    dq_ptr,  # (B, H, Tq, D)
    delta_ptr,  # (B, H, Tq), (1 - p) delta for the "kv" kernel
    dout_ptr,  # (B, H, Tq, Dv)
    out_ptr,  # (B, H, Tq, Dv)
    statistics_ptr,  # (1 or 2, B, H, Tq), of the forward pass
    q_ptr,  # (B, H, Tq, D)
    k_ptr,  # (B, Hkv, Tk, D)
    v_ptr,  # (B, Hkv, Tk, Dv)
    seed_ptr,  # () or None
    ranges_ptr,  # (B, Tq, 2): the keys that each row may see; or None
    stride_dqb, stride_dqh, stride_dqt,
    stride_doutb, stride_douth, stride_doutt,
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
    offset = Tk - Tq if CAUSAL == BOTTOM_RIGHT else 0  # of the diagonal
    pairs, order, head, batch = scheduled(H)
    first_row = (tl.num_programs(1) - 1 - order) * M  # the longest rows first
    row, d, e = first_row + tl.arange(0, M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    is_d, is_e, is_row = (d < D)[None, :], (e < DV)[None, :], None if EVEN else row < Tq
    inside = None if EVEN else (row < Tq)[:, None] & is_d
    inside_out = None if EVEN else (row < Tq)[:, None] & is_e
    long_row = row.to(tl.int64)[:, None]

    q_ptr += batch * stride_qb + head * stride_qh
    q = read(q_ptr + long_row * stride_qt + d[None, :], inside)  # (M, D)
    dout_ptr += batch * stride_doutb + head * stride_douth
    dout = read(dout_ptr + long_row * stride_doutt + e[None, :], inside_out)  # (M, DV)
    out_ptr += batch * stride_outb + head * stride_outh
    out = read(out_ptr + long_row * stride_outt + e[None, :], inside_out)  # (M, DV)
    at = (batch * H + head) * Tq + row
    m = read(statistics_ptr + at, is_row)  # (M,)
    rz = 1.0 / read(statistics_ptr + pairs * Tq + at, is_row, 1.0)[:, None] if WIDE else None
    delta = tl.zeros((M,), ACC)
    if not WIDE and KEEP_SCALE > 0:
        delta = sum_of_products(dout.to(ACC), out.to(ACC), 1) / KEEP_SCALE

    # --- every tile of keys; for wide operands twice, and at first for delta ---
    k_ptr += batch * stride_kb + head // GROUP * stride_kh
    v_ptr += batch * stride_vb + head // GROUP * stride_vh
    k_tiles = tiles_of(k_ptr, Tk, stride_kt, d, N, D, DESCRIBED)
    v_tiles = tiles_of(v_ptr, Tk, stride_vt, e, N, DV, DESCRIBED)
    seed = tl.load(seed_ptr) if THRESHOLD > 0 else 0
    dq = tl.zeros((M, BLOCK_D), ACC)
    row_begin, row_end = None, None
    if ranges_ptr is not None:
        ranges_ptr += batch * stride_rangesb
        row_begin, row_end = read_ranges(ranges_ptr, tl.minimum(row, Tq - 1))
    begin, end, begin_of_all, end_of_all = keys_seen(
        first_row + offset, Tk, row_begin, row_end, CAUSAL, WINDOW, M, N
    )
    for visit in tl.static_range(0 if WIDE else 1, 2):
        if visit == 1:
            tl.store(delta_ptr + at, delta, is_row)
        for first_key in tl.range(begin, end, N):
            key = first_key + tl.arange(0, N)
            inside_k = None if EVEN else (key < Tk)[:, None] & is_d
            inside_v = None if EVEN else (key < Tk)[:, None] & is_e
            k = read_tile(k_tiles, first_key, stride_kt, inside_k, DESCRIBED)  # (N, D)
            v = read_tile(v_tiles, first_key, stride_vt, inside_v, DESCRIBED)  # (N, DV)
            s = products(q, k, ACC)  # (M, N)
            if SOFTCAP > 0:
                t = tanh(s * (SCALE / SOFTCAP))
                s = SOFTCAP * t
            p = weights(s, m[:, None], rz, FACTOR, WIDE)
            # mask the diagonal, the edge of the window and what is past the last key
            masked = first_key + N > end_of_all
            if WINDOW > 0 or ranges_ptr is not None:
                masked |= first_key < begin_of_all
            if masked:
                seen = (key < Tk)[None, :]
                seen &= is_seen(row + offset, key, row_begin, row_end, CAUSAL, WINDOW, 1)
                p = tl.where(seen, p, 0.0)
            # accumulate dQ
            dp = products(dout, v, ACC)  # (M, N)
            if THRESHOLD > 0:
                keep = keep_in_tile(seed, head, batch, first_row, first_key, THRESHOLD, M, N)
                dp = tl.where(keep, dp, 0.0)
            if visit == 0:
                delta += sum_of_products(p, dp, 1)
            else:
                ds = p * (dp - delta[:, None])
                if SOFTCAP > 0:
                    ds *= 1.0 - t * t
                dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee", out_dtype=ACC)

    # --- output ---
    dq_ptr += batch * stride_dqb + head * stride_dqh
    dq = (dq * (SCALE * KEEP_SCALE)).to(dq_ptr.dtype.element_ty)
    tl.store(dq_ptr + long_row * stride_dqt + d[None, :], dq, inside)


@triton.jit(do_not_specialize=["Hkv"])
def attention_backward_kv_kernel(
    dk_ptr,  # (B, Hkv, Tk, D)
    dv_ptr,  # (B, Hkv, Tk, Dv)
    delta_ptr,  # (B, H, Tq): (1 - p) delta
    dout_ptr,  # (B, H, Tq, Dv)
    statistics_ptr,  # (1 or 2, B, H, Tq), of the forward pass
    q_ptr,  # (B, H, Tq, D)
    k_ptr,  # (B, Hkv, Tk, D)
    v_ptr,  # (B, Hkv, Tk, Dv)
    seed_ptr,  # () or None
    ranges_ptr,  # (B, Tq, 2): the keys that each row may see; or None
    row_ranges_ptr,  # (B, Tk, 2): the rows that may see each key; or None
    stride_dkb, stride_dkh, stride_dkt,
    stride_dvb, stride_dvh, stride_dvt,
    stride_doutb, stride_douth, stride_doutt,
    stride_qb, stride_qh, stride_qt,
    stride_kb, stride_kh, stride_kt,
    stride_vb, stride_vh, stride_vt,
    Hkv, Tq, Tk, stride_rangesb, stride_row_rangesb,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    UNSEEING: tl.constexpr, THRESHOLD: tl.constexpr, KEEP_SCALE: tl.constexpr, GROUP: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, EVEN: tl.constexpr, DESCRIBED: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = q_ptr.dtype.element_ty.primitive_bitwidth >= 32
    FACTOR: tl.constexpr = (1.0 if SOFTCAP > 0 else SCALE) * LOG2_E  # of S, for logits in base 2
    offset = Tk - Tq if CAUSAL == BOTTOM_RIGHT else 0  # of the diagonal
    pairs, order, kv_head, batch = scheduled(Hkv)
    first_key = order * N  # keys that most rows see first
    key, d, e = first_key + tl.arange(0, N), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    is_d, is_e = (d < D)[None, :], (e < DV)[None, :]
    inside = None if EVEN else (key < Tk)[:, None] & is_d
    inside_v = None if EVEN else (key < Tk)[:, None] & is_e
    long_key = key.to(tl.int64)[:, None]

    # --- the tile of keys ---
    k_ptr += batch * stride_kb + kv_head * stride_kh
    k = read(k_ptr + long_key * stride_kt + d[None, :], inside)  # (N, D)
    v_ptr += batch * stride_vb + kv_head * stride_vh
    v = read(v_ptr + long_key * stride_vt + e[None, :], inside_v)  # (N, DV)
    seed = tl.load(seed_ptr) if THRESHOLD > 0 else 0
    dk, dv = tl.zeros((N, BLOCK_D), ACC), tl.zeros((N, BLOCK_DV), ACC)
    # the rows that see a key
    begin, end = first_key if CAUSAL else 0, Tq
    if CAUSAL == BOTTOM_RIGHT:
        begin = tl.maximum(first_key - offset, 0) // M * M
    if WINDOW > 0:
        end = tl.minimum(first_key - offset + N + WINDOW - 1, Tq)
    if ranges_ptr is not None:
        ranges_ptr += batch * stride_rangesb
        row_ranges_ptr += batch * stride_row_rangesb
        key_begin, key_end = read_ranges(row_ranges_ptr, tl.minimum(key, Tk - 1))
        begin = tl.maximum(begin, tl.min(key_begin, 0) // M * M)
        end = tl.minimum(end, tl.max(key_end, 0))

    # --- every tile of rows, of every query head of the group ---
    for member in tl.range(0, GROUP):
        head = kv_head * GROUP + member
        q_head_ptr = q_ptr + batch * stride_qb + head * stride_qh
        q_tiles = tiles_of(q_head_ptr, Tq, stride_qt, d, M, D, DESCRIBED)
        dout_head_ptr = dout_ptr + batch * stride_doutb + head * stride_douth
        dout_tiles = tiles_of(dout_head_ptr, Tq, stride_doutt, e, M, DV, DESCRIBED)
        first = (batch * Hkv * GROUP + head) * Tq
        for first_row in tl.range(begin, end, M):
            row = first_row + tl.arange(0, M)
            is_row = None if EVEN else row < Tq
            inside_q = None if EVEN else (row < Tq)[:, None] & is_d
            inside_dout = None if EVEN else (row < Tq)[:, None] & is_e
            q = read_tile(q_tiles, first_row, stride_qt, inside_q, DESCRIBED)  # (M, D)
            dout = read_tile(dout_tiles, first_row, stride_doutt, inside_dout, DESCRIBED)
            m = read(statistics_ptr + first + row, is_row)  # (M,)
            rz = None
            if WIDE:
                z_ptr = statistics_ptr + pairs * GROUP * Tq + first
                rz = 1.0 / read(z_ptr + row, is_row, 1.0)[None, :]
            s = products(k, q, ACC, WIDE)  # (N, M)
            if SOFTCAP > 0:
                t = tanh(s * (SCALE / SOFTCAP))
                s = SOFTCAP * t
            p = weights(s, m[None, :], rz, FACTOR, WIDE)
            row_begin, row_end, masked = None, None, False
            if ranges_ptr is not None:
                row_begin, row_end = read_ranges(ranges_ptr, tl.minimum(row, Tq - 1))
                masked = True
            elif CAUSAL:
                masked = first_row + offset < first_key + N - 1
                if WINDOW > 0:
                    masked |= first_row + offset + M > first_key + WINDOW
            if masked:
                seen = is_seen(row + offset, key, row_begin, row_end, CAUSAL, WINDOW, 0)
                p = tl.where(seen, p, 0.0)
            # accumulate dV and dK
            kept = p
            if THRESHOLD > 0:
                keep = keep_in_tile(seed, head, batch, first_row, first_key, THRESHOLD, M, N)
                keep = tl.trans(keep)  # (N, M)
                kept = tl.where(keep, p, 0.0)
            dv = tl.dot(kept.to(dout.dtype), dout, dv, input_precision="ieee", out_dtype=ACC)
            dp = products(v, dout, ACC, WIDE)  # (N, M)
            if THRESHOLD > 0:
                dp = tl.where(keep, dp, 0.0)
            delta = read(delta_ptr + first + row, is_row)  # (M,)
            ds = p * (dp - delta[None, :])
            if SOFTCAP > 0:
                ds *= 1.0 - t * t
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee", out_dtype=ACC)

    # --- output ---
    dk_ptr += batch * stride_dkb + kv_head * stride_dkh
    dk = (dk * (SCALE * KEEP_SCALE)).to(dk_ptr.dtype.element_ty)
    tl.store(dk_ptr + long_key * stride_dkt + d[None, :], dk, inside)
    dv_ptr += batch * stride_dvb + kv_head * stride_dvh
    dv = (dv * KEEP_SCALE).to(dv_ptr.dtype.element_ty)
    tl.store(dv_ptr + long_key * stride_dvt + e[None, :], dv, inside_v)


def attention_backward(gradients, dout, q, k, v, out, statistics, seed, of_rows, of_keys, options):
    """Fill the gradients dq, dk and dv. All last strides are 1."""
    dq, dk, dv = gradients
    B, H, Tq, _ = q.shape
    Hkv, Tk = k.shape[1:3]
    given = q, k, v, of_rows, options
    delta = torch.empty_like(statistics[0])

    def strides(*tensors):
        return [stride for tensor in tensors for stride in tensor.stride()[:3]]

    by_rows = tiled("attention_q", *given, (k, v))
    tensors = dq, delta, dout, out, statistics, q, k, v, seed, of_rows
    numbers = *strides(dq, dout, out, q, k, v), H, Tq, Tk, batch_stride(of_rows)
    grid = grouped(k, B * H, cdiv(Tq, by_rows["M"]))
    launch(attention_backward_q_kernel, grid, *tensors, *numbers, **by_rows)
    by_keys = tiled("attention_kv", *given, (q, dout))
    by_keys["EVEN"] &= by_keys["N"] % by_keys["M"] == 0  # its rows begin where a tile of keys does
    tensors = dk, dv, delta, dout, statistics, q, k, v, seed, of_rows, of_keys
    of_ranges = batch_stride(of_rows), batch_stride(of_keys)
    numbers = *strides(dk, dv, dout, q, k, v), Hkv, Tq, Tk, *of_ranges
    grid = grouped(q, B * Hkv, cdiv(Tk, by_keys["N"]))
    launch(attention_backward_kv_kernel, grid, *tensors, *numbers, **by_keys)
