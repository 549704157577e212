"""Causal self-attention, one tile of rows at a time, with dropout on the attention weights.

    S = scale Q K^T, -inf where a row may not see a key   (causal: key <= row;
                                                           a window of W: row - W < key <= row)
    P = softmax(S)                                        out = dropout(P) V

The (T, T) matrices never exist. One program holds M rows of Q and walks over tiles of N keys,
with a running maximum m and a running sum z of every row (FlashAttention-2, Dao 2023):

    m_new = max(m, max S)      alpha = 2^(m - m_new)        p = 2^(S - m_new)
    z = alpha z + sum p        acc = alpha acc + keep p V   m = m_new
    out = acc / (1 - dropout_p) / z                         lse = m + log2 z

- Everything is in base 2, log2(e) folded into the scale: the hardware has exp2 and not exp.
- z sums p before dropout, as the lecture normalises before it drops.
- One loop for all tiles of keys; only those on the diagonal, at the window's edge, or past the
  last key, enter the branch that masks. Two loops would make ptxas wait for every product of the
  tensor cores.
- With a window the loop begins at its first tile, so time grows with T W and not with T^2.
- Kept for the backward: out, and lse in fp32, so memory grows with T and not with T^2.

`attention` takes any strides; `attention_qkv` runs the same kernels on views of the packed
projection, and its backward writes one packed gradient: nothing is transposed or copied.
The backward stands in `attention_backward.py`.

Letters: B batch, H heads, Hkv heads of keys and values, T time, D head size.
"""

import math

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from kernels.attention.attention_backward import (
    LOG2_E,
    attention_backward,
    options,
    read,
    scheduled,
    tile_pointers,
    together,
)
from kernels.attention.rotary import rotary_backward, rotary_forward
from kernels.common.launch import cdiv, launch, next_power_of_2, opaque
from kernels.common.philox import keep_in_tile, threshold_and_scale

LARGEST_HEAD = 256  # a row of Q, K, V and the accumulator must fit on chip


@triton.jit(do_not_specialize=["H", "together"])
def attention_forward_kernel(
    out_ptr,  # (B, H, Tq, D)
    lse_ptr,  # (B, H, Tq)
    q_ptr,  # (B, H, Tq, D)
    k_ptr,  # (B, Hkv, Tk, D)
    v_ptr,  # (B, Hkv, Tk, D)
    seed_ptr,  # ()
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
    H,
    Tq,
    Tk,
    together,
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
    EVEN: tl.constexpr,
    ACC: tl.constexpr,
):
    tiles = tl.cdiv(Tq, M)
    order, head, batch = scheduled(tiles, H, together)
    first_row = (tiles - 1 - order) * M  # the longest rows first
    row, d = first_row + tl.arange(0, M), tl.arange(0, BLOCK_D)
    is_d = (d < D)[None, :]
    inside = None if EVEN else (row < Tq)[:, None] & is_d
    long_row = row.to(tl.int64)[:, None]

    q_ptr += batch * stride_qb + head * stride_qh
    q = read(q_ptr + long_row * stride_qt + d[None, :], inside)  # (M, D)
    k_tile = tile_pointers(k_ptr + batch * stride_kb + head // GROUP * stride_kh, stride_kt, N, d)
    v_tile = tile_pointers(v_ptr + batch * stride_vb + head // GROUP * stride_vh, stride_vt, N, d)
    seed = tl.load(seed_ptr) if THRESHOLD > 0 else 0
    m = tl.full((M,), float("-inf"), ACC)
    z = tl.zeros((M,), ACC)
    acc = tl.zeros((M, BLOCK_D), ACC)
    seen_by_all = tl.minimum(first_row + 1, Tk) if CAUSAL else Tk
    seen_by_any = tl.minimum(first_row + M, Tk) if CAUSAL else Tk
    first_seen = tl.maximum(first_row - WINDOW + 1, 0) // N * N if WINDOW > 0 else 0
    for first_key in tl.range(first_seen, seen_by_any, N):
        key = first_key + tl.arange(0, N)
        inside_k = None if EVEN else (key < Tk)[:, None] & is_d
        k = read(k_tile + tl.cast(first_key, tl.int64) * stride_kt, inside_k)  # (N, D)
        v = read(v_tile + tl.cast(first_key, tl.int64) * stride_vt, inside_k)  # (N, D)
        s = tl.dot(q, tl.trans(k), input_precision="ieee", out_dtype=ACC)  # (M, N)
        masked = first_key + N > seen_by_all
        if WINDOW > 0:
            masked |= first_key < first_row + M - WINDOW
        if masked:
            seen = (key < Tk)[None, :]
            if CAUSAL:
                seen &= row[:, None] >= key[None, :]
            if WINDOW > 0:
                seen &= row[:, None] - key[None, :] < WINDOW
            s = tl.where(seen, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * (SCALE * LOG2_E))
        shift = m_new
        if WINDOW > 0:  # a row's first tiles may lie before its window: -inf - -inf is no number
            shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s * (SCALE * LOG2_E) - shift[:, None])
        alpha = tl.exp2(m - shift)
        z = z * alpha + tl.sum(p, 1)
        if THRESHOLD > 0:
            keep = keep_in_tile(seed, head, batch, first_row, first_key, THRESHOLD, M, N)
            p = tl.where(keep, p, 0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision="ieee", out_dtype=ACC)
        m = m_new
    out_ptr += batch * stride_outb + head * stride_outh
    out = (acc * (KEEP_SCALE / z)[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + long_row * stride_outt + d[None, :], out, inside)
    statistics = (batch * H + head) * Tq + row
    tl.store(lse_ptr + statistics, m + tl.log2(z), row < Tq)


class Attention(torch.autograd.Function):
    """q (B, H, Tq, D), k and v (B, Hkv, Tk, D) -> (B, H, Tq, D), and one gradient for each."""

    @staticmethod
    def forward(ctx, q, k, v, seed, constants):
        q, k, v = _whole_rows(q), _whole_rows(k), _whole_rows(v)
        out = _empty_like(q)
        lse = _launch_forward(out, q, k, v, seed, constants)
        ctx.save_for_backward(q, k, v, out, lse, seed)
        ctx.constants = constants
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        q, k, v, out, lse, seed = ctx.saved_tensors
        dq, dk, dv = _empty_like(q), _empty_like(k), _empty_like(v)
        dout = _whole_rows(dout)
        attention_backward(dq, dk, dv, dout, q, k, v, out, lse, seed, ctx.constants)
        return dq, dk, dv, None, None


class PackedAttention(torch.autograd.Function):
    """(B, T, (H + 2 Hkv) D) as [query | key | value] -> (B, T, H D), and one such gradient.

    With `positions`, queries and keys are first normalised and turned (`kernels/attention/rotary.py`).
    """

    @staticmethod
    def forward(ctx, qkv, counts, positions, seed, constants):
        qkv, (H, Hkv, _) = _whole_rows(qkv), counts
        q, k, v = _heads(qkv, *counts)
        qk = None
        if positions is not None:
            qk = rotary_forward(qkv, counts, positions)  # (B, T, (H + Hkv) D)
            q, k = _heads(qk, H, Hkv)
        out = qkv.new_empty((*qkv.shape[:2], H * constants["D"]))
        lse = _launch_forward(*_heads(out, H), q, k, v, seed, constants)
        ctx.save_for_backward(qkv, qk, out, lse, seed)
        ctx.counts, ctx.positions, ctx.constants = counts, positions, constants
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        qkv, qk, out, lse, seed = ctx.saved_tensors
        counts, (H, Hkv, _) = ctx.counts, ctx.counts
        dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
        (q, k, v), (dq, dk, dv) = _heads(qkv, *counts), _heads(dqkv, *counts)
        if ctx.positions is not None:
            dqk = torch.empty_like(qk)
            (q, k), (dq, dk) = _heads(qk, H, Hkv), _heads(dqk, H, Hkv)
        (dout,), (out,) = _heads(_whole_rows(dout), H), _heads(out, H)
        attention_backward(dq, dk, dv, dout, q, k, v, out, lse, seed, ctx.constants)
        if ctx.positions is not None:
            rotary_backward(dqk, qkv, dqkv, counts, ctx.positions)
        return dqkv, None, None, None, None


def _launch_forward(out, q, k, v, seed, constants):
    """Fill `out`, return the log-sum-exp (B, H, Tq) in base 2. The last stride of all is 1."""
    B, H, Tq, _ = q.shape
    accumulator = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = torch.empty((B, H, Tq), dtype=accumulator, device=q.device)
    more = constants["WINDOW"] or constants["THRESHOLD"]
    variant = ("causal_more" if more else "causal") if constants["CAUSAL"] else ""
    tile = options("attention", variant, q, k, constants)
    grid = (cdiv(Tq, tile["M"]) * H * B,)
    strides = [stride for x in (out, q, k, v) for stride in x.stride()[:3]]
    sizes = H, Tq, k.shape[2], together(k)
    launch(attention_forward_kernel, grid, out, lse, q, k, v, seed, *strides, *sizes, **tile)
    return lse


def _empty_like(x):
    """Room for (B, H, T, D) that lies in memory as (B, T, H, D): joining the heads is free."""
    B, H, T, D = x.shape
    return x.new_empty((B, T, H, D)).transpose(1, 2)


def _heads(x, *counts):
    """Views (B, H, T, D) of x (B, T, C): its channels are so many heads, then so many, ..."""
    return x.unflatten(-1, (sum(counts), -1)).transpose(1, 2).split(counts, dim=1)


def _whole_rows(x):
    """x with its last dimension contiguous, which it is unless the caller went out of their way."""
    return x if x.stride(-1) == 1 else x.contiguous()


@opaque
def attention(q, k, v, *, causal=True, window=0, dropout_p=0.0, scale=None, seed=None):
    """softmax(scale q k^T) v with dropout on the weights; shapes and defaults in `kernels.Ops`.

    With `causal`, row t sees keys 0..t, also where Tq and Tk differ, and of these a window of W > 0
    has the last W. H is a multiple of Hkv, and head h reads keys and values h // (H / Hkv).
    """
    q, k, v = _autocast(q), _autocast(k), _autocast(v)
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.ndim == k.ndim == 4 or k.shape != v.shape or q.shape[::3] != k.shape[::3]:
        raise ValueError(f"attention takes q (B, H, Tq, D), k and v (B, Hkv, Tk, D), not {shapes}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"attention needs H to be a multiple of Hkv; it got {shapes}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attention needs one dtype, not {q.dtype}, {k.dtype} and {v.dtype}")
    if q.shape[2] and not k.shape[2]:
        raise ValueError(f"attention needs at least one key; it got {shapes}")
    if 0 < window <= q.shape[2] - k.shape[2]:
        raise ValueError(f"attention's last rows see no key in a window of {window}: {shapes}")
    constants = _constants(q, k, causal, window, dropout_p, scale)
    return Attention.apply(q, k, v, _seed(q, seed, constants), constants)


@opaque
def attention_qkv(
    qkv,
    n_head,
    *,
    n_kv_head=None,
    causal=True,
    window=0,
    qk_norm=False,
    eps=1e-5,
    cos=None,
    sin=None,
    dropout_p=0.0,
    scale=None,
    seed=None,
):
    """Attention of all heads from the packed projection; shapes and defaults in `kernels.Ops`."""
    qkv = _autocast(qkv)
    counts = (n_head, *[n_head if n_kv_head is None else n_kv_head] * 2)  # of query, key, value
    if qkv.ndim != 3 or min(counts) < 1 or qkv.shape[-1] == 0 or qkv.shape[-1] % sum(counts):
        raise ValueError(
            f"attention_qkv takes qkv (B, T, (H + 2 Hkv) D), not {tuple(qkv.shape)} with "
            f"H = {counts[0]} and Hkv = {counts[1]}"
        )
    if n_head % counts[1]:
        raise ValueError(f"attention_qkv needs H to be a multiple of Hkv, not {counts[:2]}")
    q, k, _ = _heads(qkv, *counts)
    constants = _constants(q, k, causal, window, dropout_p, scale)
    _check_angles(cos, sin, qkv.shape[1], q.shape[-1])
    angles = (None, None) if cos is None else (cos.contiguous(), sin.contiguous())
    positions = (qk_norm, eps, *angles) if qk_norm or cos is not None else None
    return PackedAttention.apply(qkv, counts, positions, _seed(qkv, seed, constants), constants)


def _check_angles(cos, sin, T, D):
    if (cos is None) != (sin is None):
        raise ValueError("attention_qkv takes both cos and sin, or neither")
    for name, angles in {"cos": cos, "sin": sin}.items() if cos is not None else ():
        if angles.ndim != 2 or angles.shape[0] < T or angles.shape[1] != D or D % 2:
            raise ValueError(
                f"attention_qkv takes {name} (at least T, D) with an even D, not "
                f"{tuple(angles.shape)} for T = {T} and D = {D}"
            )


def _constants(q, k, causal, window, dropout_p, scale):
    """What the kernels are compiled for, the tile aside."""
    D = q.shape[-1]
    if window < 0 or (window and not causal):
        raise ValueError(
            "attention takes a window of at least 1 key, or 0 for all, and only where it is "
            f"causal, not {window} with causal={causal}"
        )
    if not 1 <= D <= LARGEST_HEAD:
        raise ValueError(f"attention takes heads of 1 to {LARGEST_HEAD} channels, not {D}")
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"attention takes fp16, bf16, fp32 or fp64, not {q.dtype}")
    scale = D**-0.5 if scale is None else scale
    if not 0 < scale < math.inf:
        raise ValueError(f"attention needs a positive scale, not {scale}")
    threshold, keep_scale = threshold_and_scale(dropout_p)
    return {
        "SCALE": float(scale),
        "CAUSAL": bool(causal),
        "WINDOW": window if window < q.shape[2] else 0,
        "THRESHOLD": threshold,
        "KEEP_SCALE": keep_scale,
        "GROUP": q.shape[1] // k.shape[1],
        "D": D,
        "BLOCK_D": max(16, next_power_of_2(D)),  # a tensor core multiplies 16 at a time
        "ACC": tl.float64 if q.dtype == torch.float64 else tl.float32,
    }


def _autocast(x):
    """x as a matrix product takes it under autocast."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return x
    return x if x.dtype == torch.float64 else x.to(torch.get_autocast_dtype(device))


def _seed(x, seed, constants):
    """The seed of this call, () int64 on the device; none where nothing is dropped."""
    if constants["THRESHOLD"] == 0:
        return None
    if seed is None:
        return torch.randint(2**63 - 1, (), dtype=torch.int64, device=x.device)
    return seed
