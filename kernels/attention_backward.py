"""Gradients of attention, in two kernels that compute P again from the saved log-sum-exp.

    P_drop = keep P / (1 - p)             out   = P_drop V
    dV     = P_drop^T dout                dP    = keep (dout V^T) / (1 - p)
    dS     = P (dP - delta)               delta = rowsum(dout out), equal to rowsum(P dP)
    dQ     = scale dS K                   dK    = scale dS^T Q

- The "q" kernel owns a tile of rows and walks over keys, the "kv" kernel owns a tile of keys and
  walks over rows. Computing S in both costs two products more than adding dQ up from all keys,
  but every sum is then made by one program in one order: no atomics, the same bits every time.
- The "q" kernel runs first, because it holds whole rows of dout and out: it writes delta.
- The "kv" kernel computes S^T = K Q^T. P^T and dS^T are then left operands as they stand in
  registers, and no accumulator has to be transposed.
- Either visits only tiles that have a pair of row and key which see each other, whole or in part.
- Rows from Tq on are read as zeros, dout and delta too: they add exactly nothing to dK and dV.
  So do keys from Tk on to dQ, once P is 0 there (a P of such a key might overflow).
"""

import torch
import triton
import triton.language as tl

from kernels.launch import launch, tile
from kernels.philox import keep_in_tile

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def attention_backward_q_kernel(
    dq_ptr,  # (B, H, Tq, D)
    delta_ptr,  # (B, H, Tq), written for the "kv" kernel
    dout_ptr,  # (B, H, Tq, D)
    out_ptr,  # (B, H, Tq, D)
    lse_ptr,  # (B, H, Tq)
    q_ptr,  # (B, H, Tq, D)
    k_ptr,  # (B, Hkv, Tk, D)
    v_ptr,  # (B, Hkv, Tk, D)
    seed_ptr,  # ()
    stride_dqb,
    stride_dqh,
    stride_dqt,
    stride_doutb,
    stride_douth,
    stride_doutt,
    stride_outb,
    stride_outh,
    stride_outt,
    stride_qb,
    stride_qh,
    stride_qt,
    stride_kb,
    stride_kh,
    stride_kt,
    stride_vb,
    stride_vh,
    stride_vt,
    Tq,
    Tk,
    SCALE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    THRESHOLD: tl.constexpr,
    KEEP_SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    ACC: tl.constexpr,
):
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    row, d = first_row + tl.arange(0, M), tl.arange(0, BLOCK_D)
    is_row, is_d = row < Tq, (d < D)[None, :]
    inside = is_row[:, None] & is_d
    long_row = row.to(tl.int64)[:, None]

    q_ptr += batch * stride_qb + head * stride_qh
    q = tl.load(q_ptr + long_row * stride_qt + d[None, :], inside, other=0.0)  # (M, D)
    dout_ptr += batch * stride_doutb + head * stride_douth
    dout = tl.load(dout_ptr + long_row * stride_doutt + d[None, :], inside, other=0.0)  # (M, D)
    out_ptr += batch * stride_outb + head * stride_outh
    out = tl.load(out_ptr + long_row * stride_outt + d[None, :], inside, other=0.0)  # (M, D)
    statistics = (batch * tl.num_programs(1) + head) * Tq + row
    lse = tl.load(lse_ptr + statistics, is_row, other=0.0)  # (M,)
    delta = tl.sum(dout.to(ACC) * out.to(ACC), 1)  # (M,)
    tl.store(delta_ptr + statistics, delta, is_row)

    k_ptr += batch * stride_kb + head // GROUP * stride_kh
    v_ptr += batch * stride_vb + head // GROUP * stride_vh
    seed = tl.load(seed_ptr) if THRESHOLD > 0 else 0
    dq = tl.zeros((M, BLOCK_D), ACC)
    seen_by_all = tl.minimum(first_row + 1, Tk) if CAUSAL else Tk
    seen_by_any = tl.minimum(first_row + M, Tk) if CAUSAL else Tk
    first_seen = tl.maximum(first_row - WINDOW + 1, 0) // N * N if WINDOW > 0 else 0
    for first_key in tl.range(first_seen, seen_by_any, N):
        key = first_key + tl.arange(0, N)
        inside_k = (key < Tk)[:, None] & is_d
        offset = key.to(tl.int64)[:, None]
        k = tl.load(k_ptr + offset * stride_kt + d[None, :], inside_k, other=0.0)  # (N, D)
        v = tl.load(v_ptr + offset * stride_vt + d[None, :], inside_k, other=0.0)  # (N, D)
        s = tl.dot(q, tl.trans(k), input_precision="ieee", out_dtype=ACC)  # (M, N)
        p = tl.exp2(s * (SCALE * LOG2_E) - lse[:, None])
        masked = first_key + N > seen_by_all
        if WINDOW > 0:
            masked |= first_key < first_row + M - WINDOW
        if masked:
            seen = (key < Tk)[None, :]
            if CAUSAL:
                seen &= row[:, None] >= key[None, :]
            if WINDOW > 0:
                seen &= row[:, None] - key[None, :] < WINDOW
            p = tl.where(seen, p, 0.0)
        dp = tl.dot(dout, tl.trans(v), input_precision="ieee", out_dtype=ACC)  # (M, N)
        if THRESHOLD > 0:
            keep = keep_in_tile(seed, head, batch, first_row, first_key, THRESHOLD, M, N)
            dp = tl.where(keep, dp * KEEP_SCALE, 0.0)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee", out_dtype=ACC)
    dq_ptr += batch * stride_dqb + head * stride_dqh
    dq = (dq * SCALE).to(dq_ptr.dtype.element_ty)
    tl.store(dq_ptr + long_row * stride_dqt + d[None, :], dq, inside)


@triton.jit
def attention_backward_kv_kernel(
    dk_ptr,  # (B, Hkv, Tk, D)
    dv_ptr,  # (B, Hkv, Tk, D)
    delta_ptr,  # (B, H, Tq)
    dout_ptr,  # (B, H, Tq, D)
    lse_ptr,  # (B, H, Tq)
    q_ptr,  # (B, H, Tq, D)
    k_ptr,  # (B, Hkv, Tk, D)
    v_ptr,  # (B, Hkv, Tk, D)
    seed_ptr,  # ()
    stride_dkb,
    stride_dkh,
    stride_dkt,
    stride_dvb,
    stride_dvh,
    stride_dvt,
    stride_doutb,
    stride_douth,
    stride_doutt,
    stride_qb,
    stride_qh,
    stride_qt,
    stride_kb,
    stride_kh,
    stride_kt,
    stride_vb,
    stride_vh,
    stride_vt,
    Tq,
    Tk,
    SCALE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    THRESHOLD: tl.constexpr,
    KEEP_SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    ACC: tl.constexpr,
):
    first_key = tl.program_id(0) * N  # the first keys are seen by most rows
    kv_head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    key, d = first_key + tl.arange(0, N), tl.arange(0, BLOCK_D)
    is_d = (d < D)[None, :]
    inside = (key < Tk)[:, None] & is_d
    long_key = key.to(tl.int64)[:, None]

    k_ptr += batch * stride_kb + kv_head * stride_kh
    k = tl.load(k_ptr + long_key * stride_kt + d[None, :], inside, other=0.0)  # (N, D)
    v_ptr += batch * stride_vb + kv_head * stride_vh
    v = tl.load(v_ptr + long_key * stride_vt + d[None, :], inside, other=0.0)  # (N, D)
    seed = tl.load(seed_ptr) if THRESHOLD > 0 else 0
    dk, dv = tl.zeros((N, BLOCK_D), ACC), tl.zeros((N, BLOCK_D), ACC)
    end = tl.minimum(first_key + N + WINDOW - 1, Tq) if WINDOW > 0 else Tq  # of rows that see any
    for member in tl.range(0, GROUP):
        head = kv_head * GROUP + member
        q_head_ptr = q_ptr + batch * stride_qb + head * stride_qh
        dout_head_ptr = dout_ptr + batch * stride_doutb + head * stride_douth
        statistics = (batch * tl.num_programs(1) * GROUP + head) * Tq
        for first_row in tl.range(first_key if CAUSAL else 0, end, M):
            row = first_row + tl.arange(0, M)
            inside_q = (row < Tq)[:, None] & is_d
            offset = row.to(tl.int64)[:, None]
            q = tl.load(q_head_ptr + offset * stride_qt + d[None, :], inside_q, other=0.0)
            dout = tl.load(dout_head_ptr + offset * stride_doutt + d[None, :], inside_q, other=0.0)
            lse = tl.load(lse_ptr + statistics + row, row < Tq, other=0.0)  # (M,)
            s = tl.dot(k, tl.trans(q), input_precision="ieee", out_dtype=ACC)  # (N, M)
            p = tl.exp2(s * (SCALE * LOG2_E) - lse[None, :])
            if CAUSAL:
                masked = first_row < first_key + N - 1
                if WINDOW > 0:
                    masked |= first_row + M > first_key + WINDOW
                if masked:
                    seen = row[None, :] >= key[:, None]
                    if WINDOW > 0:
                        seen &= row[None, :] - key[:, None] < WINDOW
                    p = tl.where(seen, p, 0.0)
            kept = p
            if THRESHOLD > 0:
                keep = keep_in_tile(seed, head, batch, first_row, first_key, THRESHOLD, M, N)
                keep = tl.trans(keep)  # (N, M)
                kept = tl.where(keep, p, 0.0)
            dv = tl.dot(kept.to(dout.dtype), dout, dv, input_precision="ieee", out_dtype=ACC)
            dp = tl.dot(v, tl.trans(dout), input_precision="ieee", out_dtype=ACC)  # (N, M)
            if THRESHOLD > 0:
                dp = tl.where(keep, dp * KEEP_SCALE, 0.0)
            delta = tl.load(delta_ptr + statistics + row, row < Tq, other=0.0)  # (M,)
            ds = p * (dp - delta[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee", out_dtype=ACC)
    dk_ptr += batch * stride_dkb + kv_head * stride_dkh
    dk = (dk * SCALE).to(dk_ptr.dtype.element_ty)
    tl.store(dk_ptr + long_key * stride_dkt + d[None, :], dk, inside)
    dv_ptr += batch * stride_dvb + kv_head * stride_dvh
    dv = (dv * KEEP_SCALE).to(dv_ptr.dtype.element_ty)
    tl.store(dv_ptr + long_key * stride_dvt + d[None, :], dv, inside)


def attention_backward(dq, dk, dv, dout, q, k, v, out, lse, seed, constants):
    """Fill dq, dk and dv. The last stride of all is 1."""
    B, H, Tq, _ = q.shape
    Hkv, Tk = k.shape[1:3]
    delta = torch.empty_like(lse)

    def strides(*tensors):
        return [stride for tensor in tensors for stride in tensor.stride()[:3]]

    by_rows = options("attention_q", q, constants)
    launch(
        attention_backward_q_kernel,
        (triton.cdiv(Tq, by_rows["M"]), H, B),
        *(dq, delta, dout, out, lse, q, k, v, seed),
        *strides(dq, dout, out, q, k, v),
        *(Tq, Tk),
        **by_rows,
    )
    by_keys = options("attention_kv", q, constants)
    launch(
        attention_backward_kv_kernel,
        (triton.cdiv(Tk, by_keys["N"]), Hkv, B),
        *(dk, dv, delta, dout, lse, q, k, v, seed),
        *strides(dk, dv, dout, q, k, v),
        *(Tq, Tk),
        **by_keys,
    )


def options(kernel, q, constants):
    """Constants, tile and warps of a launch of `kernel`, by the row of `launch.TILES`."""
    kernel += "" if q.element_size() == 2 else "_fp32"
    M, N, warps, stages, registers = tile(kernel, q.device)[max(64, constants["BLOCK_D"])]
    return {
        **constants,
        "M": M,
        "N": N,
        "num_warps": warps,
        "num_stages": stages,
        "maxnreg": registers,
    }
