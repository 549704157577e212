"""Attention of queries, keys and values, and of their packed projection, as operations.

`attention` takes any strides. `attention_qkv` runs the same kernels on views of the packed
projection, and its backward writes one packed gradient, so that nothing is transposed or copied.
The equations and kernels are in `attention_forward.py` and `attention_backward.py`.

Letters: B batch, H heads, Hkv heads of keys and values, T time, D head size.
"""

from typing import Literal

import torch

from ..common.dtypes import accumulator, autocast_dtype
from ..common.operands import check_operands
from ..common.operator import Operation
from ..common.philox import seed_of_call
from ..key_ranges import KeyRanges
from .attention_backward import attention_backward
from .attention_forward import attention_forward
from .options import OPTIONS, check_options, checked_ranges
from .rotary import rotary_backward, rotary_forward


class Attention(Operation):
    """q (B, H, Tq, D), k (B, Hkv, Tk, D), v (B, Hkv, Tk, Dv) -> (B, H, Tq, Dv)."""

    schema = (
        "attention(Tensor q, Tensor k, Tensor v, Tensor? seed, Tensor? of_rows, Tensor? of_keys, "
        f"{OPTIONS})"
    )
    cast = 3

    @staticmethod
    def empty(q, k, v, *_):
        return _empty_like(q, v.shape[3]), _empty_statistics(q, q.shape[1], q.shape[2])

    @staticmethod
    def forward(q, k, v, seed, of_rows, of_keys, *options):
        out, statistics = Attention.empty(q, k, v)
        q, k, v = _whole_rows(q), _whole_rows(k), _whole_rows(v)
        attention_forward(out, statistics, q, k, v, seed, of_rows, options)
        return out, statistics

    @staticmethod
    def saved(*arguments):
        return *arguments[:3], *arguments[-2:], *arguments[3:6]

    @staticmethod
    def backward(gradients, saved, needs, *options):
        found = Attention.empty_gradients(gradients, saved, needs)
        q, k, v, *others = saved
        operands = map(_whole_rows, (*gradients, q, k, v))
        attention_backward(found[:3], *operands, *others, options)
        return found

    @staticmethod
    def empty_gradients(gradients, saved, *_):
        return *(_empty_like(x, x.shape[3]) for x in saved[:3]), *3 * [None]


class PackedAttention(Operation):
    """[query | key | value] (B, T, (H + 2 Hkv) D) -> (B, T, H D), with one packed gradient.

    With `qk_norm` or angles, queries and keys are first normalised and rotated (`rotary.py`).
    """

    schema = (
        "attention_qkv(Tensor qkv, Tensor? cos, Tensor? sin, Tensor? seed, Tensor? of_rows, "
        f"Tensor? of_keys, int n_head, int n_kv_head, bool qk_norm, float eps, {OPTIONS})"
    )
    cast = 1

    @staticmethod
    def empty(qkv, cos, sin, seed, of_rows, of_keys, H, Hkv, qk_norm, *_):
        B, T, C = qkv.shape
        D, like = C // (H + 2 * Hkv), {"dtype": qkv.dtype, "device": qkv.device}
        positioned = qk_norm or cos is not None
        qk = torch.empty((B, T, (H + Hkv) * D), **like) if positioned else None
        return torch.empty((B, T, H * D), **like), _empty_statistics(qkv, H, T), qk

    @staticmethod
    def forward(qkv, cos, sin, seed, of_rows, of_keys, H, Hkv, qk_norm, eps, *options):
        out, statistics, qk = PackedAttention.empty(qkv, cos, *4 * [None], H, Hkv, qk_norm)
        qkv = _whole_rows(qkv)
        q, k, v = _heads(qkv, H, Hkv, Hkv)
        if qk is not None:
            rotary_forward(qkv, qk, (H, Hkv, Hkv), (qk_norm, eps, cos, sin))
            q, k = _heads(qk, H, Hkv)
        out_heads = _heads(out, H)[0]
        attention_forward(out_heads, statistics, q, k, v, seed, of_rows, options)
        return out, statistics, qk

    @staticmethod
    def saved(qkv, cos, sin, *others):
        return qkv, cos, sin, others[-1], *others[-3:-1], *others[:3]

    @staticmethod
    def backward(gradients, saved, needs, H, Hkv, qk_norm, eps, *options):
        qkv, cos, sin, qk, out, *others = saved
        qkv, dqkv = _whole_rows(qkv), torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
        (q, k, v), (dq, dk, dv) = _heads(qkv, H, Hkv, Hkv), _heads(dqkv, H, Hkv, Hkv)
        if qk is not None:
            dqk = torch.empty_like(qk)
            (q, k), (dq, dk) = _heads(qk, H, Hkv), _heads(dqk, H, Hkv)
        (dout,), (out,) = _heads(_whole_rows(gradients[0]), H), _heads(out, H)
        attention_backward((dq, dk, dv), dout, q, k, v, out, *others, options)
        if qk is not None:
            rotary_backward(dqk, qkv, dqkv, (H, Hkv, Hkv), (qk_norm, eps, cos, sin))
        return dqkv, *5 * [None]


def _empty_statistics(x, H, T):
    """m + log2 z, or for x of 32 or 64 bits m and z: (1 or 2, B, H, T)."""
    kinds = 1 if x.element_size() == 2 else 2
    return torch.empty((kinds, x.shape[0], H, T), dtype=accumulator(x.dtype), device=x.device)


def _empty_like(x, D):
    """Allocate (B, H, T, D) with the memory order (B, T, H, D), which joins the heads for free."""
    B, H, T, _ = x.shape
    return x.new_empty((B, T, H, D)).transpose(1, 2)


def _heads(x, *counts):
    """Views (B, heads, T, D) of x (B, T, C), whose channels are groups of `counts` heads."""
    (B, T, C), heads = x.shape, sum(counts)
    x = x.view(B, T, heads, C // heads).transpose(1, 2)
    return x.split_with_sizes(counts, 1)  # in half the time of `split` on the host


def _whole_rows(x):
    """x with its last dimension contiguous, copied only if necessary."""
    return x if x.stride(-1) == 1 else x.contiguous()


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool | Literal["top_left", "bottom_right"] = True,
    window: int = 0,
    softcap: float = 0.0,
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
    options = check_options(causal, window, softcap, dropout_p, scale, q.shape[3], v.shape[3])
    return Attention.apply(q, k, v, seed, *ranges, *options)


def attention_qkv(
    qkv: torch.Tensor,
    n_head: int,
    *,
    n_kv_head: int | None = None,
    causal: bool | Literal["top_left", "bottom_right"] = True,
    window: int = 0,
    softcap: float = 0.0,
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
    cos, sin = (x if x is None else x.detach().contiguous() for x in (cos, sin))
    seed = seed_of_call(seed, dropout_p, qkv.device)
    options = check_options(causal, window, softcap, dropout_p, scale, D, D)
    B, T, _ = qkv.shape
    ranges = checked_ranges("attention_qkv", ranges, B, T, T)
    tensors = qkv, cos, sin, seed, *ranges
    return PackedAttention.apply(*tensors, H, Hkv, qk_norm, eps, *options)
