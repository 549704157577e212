"""Every operation by PyTorch's own functions; in fp64 they are the reference of the tests.

The functions of `kernels` document the operations and their shapes. Dropout uses PyTorch's
generator and ignores `seed`.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from . import torch_cpu
from .common.operands import check_sampling_rule
from .key_ranges import KeyRanges
from .ops import Ops
from .torch_attention import attention_by_products, attention_mask, fused_attention
from .torch_losses import cross_entropy, linear_cross_entropy


def embedding(
    tokens: Tensor,
    token_table: Tensor,
    position_table: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """token_table[tokens] + position_table[:T], (B, T, C); see `kernels.embedding`."""
    x = F.embedding(tokens, token_table)  # (B, T, C)
    x = x if position_table is None else x + position_table[: tokens.shape[1]]
    return x if dtype is None else x.to(dtype)


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """LayerNorm of x (..., C); see `kernels.layer_norm`."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """RMSNorm of x (..., C); see `kernels.rms_norm`."""
    if weight is None or weight.dtype == x.dtype:
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    wider = torch.promote_types(x.dtype, weight.dtype)  # PyTorch warns about two dtypes
    return F.rms_norm(x.to(wider), x.shape[-1:], weight.to(wider), eps).to(x.dtype)


def add_layer_norm(
    residual: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    x_bias: Tensor | None = None,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The residual sum and its LayerNorm, (..., C) each; see `kernels.add_layer_norm`."""
    if x_bias is not None:
        x = x + x_bias.to(x.dtype)
    x = torch_cpu.dropout(x, dropout_p)
    total = x if residual is None else residual + x
    return total, F.layer_norm(total, total.shape[-1:], weight, bias, eps)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool | Literal["top_left", "bottom_right"] = True,
    window: int = 0,
    softcap: float = 0.0,
    ranges: KeyRanges | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T) v by `scaled_dot_product_attention`; on a CPU by products if short."""
    if window and not causal:
        raise ValueError(f"attention: window is {window}, which needs causal=True")
    mask, unseeing = None, None
    by_products = softcap or (q.device.type == "cpu" and k.shape[2] <= SHORT)
    if by_products or ranges is not None or window or causal == "bottom_right":
        mask, unseeing = attention_mask(q, k, causal, window, ranges)
    if by_products:
        out = attention_by_products(q, k, v, mask, softcap, dropout_p, scale)
    else:
        out = fused_attention(
            *(q, k, v),
            attn_mask=mask,
            is_causal=bool(causal) and mask is None,
            dropout_p=dropout_p,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
    return out if unseeing is None else out.masked_fill(unseeing, 0.0)


# Keys. On a CPU the backward of PyTorch's fused attention takes three to four times as long as
# plain matrix products in bf16 (T = 64 to 256); for longer sequences the weights would take much
# memory.
SHORT = 512


def attention_qkv(
    qkv: Tensor,
    n_head: int,
    *,
    n_kv_head: int | None = None,
    causal: bool | Literal["top_left", "bottom_right"] = True,
    window: int = 0,
    softcap: float = 0.0,
    ranges: KeyRanges | None = None,
    qk_norm: bool = False,
    eps: float = 1e-5,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    """`attention` of a packed projection (B, T, (H + 2 Hkv) D), with QK norm and rotation."""
    counts = (n_head, *[n_head if n_kv_head is None else n_kv_head] * 2)  # heads of q, k, v
    heads = qkv.unflatten(2, (sum(counts), -1))  # (B, T, H + 2 Hkv, D)
    T, D = qkv.shape[1], heads.shape[3]
    is_plain = causal and not softcap and ranges is None and counts[0] == counts[1]
    if is_plain and T <= SHORT and torch_cpu.is_faster(qkv):
        mask, _ = attention_mask(qkv[:, None], qkv[:, None], True, window, None)  # (T, T)
        cos, sin = (x if x is None else x[:T].to(qkv.dtype) for x in (cos, sin))
        arguments = qkv, n_head, mask, eps if qk_norm else None, cos, sin, dropout_p
        return torch_cpu.ShortAttention.apply(*arguments, D**-0.5 if scale is None else scale)
    if qk_norm or cos is not None:
        qk, v = heads.split((counts[0] + counts[1], counts[2]), dim=2)
        angles = (x if x is None else x[:T] for x in (cos, sin))
        qk = _positioned(qk, qk_norm, eps, *angles)
        q, k = qk.split(counts[:2], dim=2)
    else:
        q, k, v = heads.split(counts, dim=2)
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))  # (B, H, T, D), (B, Hkv, T, D) twice
    options: dict[str, Any] = {"causal": causal, "window": window, "softcap": softcap}
    out = attention(q, k, v, **options, ranges=ranges, dropout_p=dropout_p, scale=scale)
    return out.transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, H D)


def _positioned(x, norm, eps, cos, sin):
    """x (..., heads, D), RMS-normalised if `norm`, rotated by cos and sin (..., D) if not None."""
    if norm:
        x = rms_norm(x, eps=eps)
    if cos is None:
        return x
    # halves (a, b) become (a cos - b sin, b cos + a sin); rolling by D/2 gives (b, a)
    rotated = x.roll(x.shape[-1] // 2, dims=-1) * sin[..., None, :].to(x.dtype)
    return torch.addcmul(rotated, x, cos[..., None, :].to(x.dtype))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu_squared": lambda x: F.relu(x).square(),
}


def feed_forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    activation: str = "gelu",
) -> Tensor:
    """Two linear layers with an activation between them, (..., C); see `kernels.feed_forward`."""
    if activation == "relu_squared" and b1 is b2 is None and torch_cpu.is_faster(x):
        return torch_cpu.ReluSquared.apply(x, w1, w2)
    hidden = ACTIVATIONS[activation](F.linear(x, w1, b1))  # (..., F)
    return F.linear(hidden, w2, b2)


def adamw(
    params: Iterable[Any],
    *,
    lr: float | Tensor = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
) -> torch.optim.AdamW:
    """`torch.optim.AdamW`; on a GPU one launch per step, which a CUDA graph can capture."""
    options: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    options |= {"amsgrad": amsgrad, "maximize": maximize}
    optimizer = torch.optim.AdamW(params, **options)
    groups = optimizer.param_groups
    devices = [parameter.device for group in groups for parameter in group["params"]]
    if not devices or any(device.type != "cuda" for device in devices):
        return optimizer
    for each in (options, *groups):  # a graph reads the learning rate on the device
        rate = torch.as_tensor(each["lr"], device=devices[0])
        each |= {"fused": True, "capturable": True, "lr": rate}
    return torch.optim.AdamW(groups, **options)


def decode_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    norm: str | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: Tensor | None = None,
    constant_weights: bool = False,
) -> Tensor:
    """A linear layer for one token of each row, (B, N); see `kernels.decode_linear`."""
    if norm == "layer_norm":
        x = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    elif norm == "rms_norm":
        x = rms_norm(x, norm_weight, eps=eps)
    y = _linear(x, weight, bias) if scale is None else _int8_linear(x, weight, scale)
    if bias is not None and scale is not None:
        y = y + bias
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    return y if residual is None else residual + y


def _linear(x, weight, bias):
    """x @ weight^T + bias; a single row on a CPU by the fastest of PyTorch's routines.

    For fp32 that is a batch of two products: on an AMD EPYC, MKL computes a single one on one core.
    For bf16 it is the matrix-vector product, which is faster than oneDNN's matrix product.
    """
    if x.device.type != "cpu" or len(x) != 1 or (x.dtype == torch.float32 and len(weight) % 2):
        return F.linear(x, weight, bias)
    if x.dtype == torch.float32:
        y = torch.bmm(x.expand(2, 1, -1), weight.unflatten(0, (2, -1)).mT).view(1, -1)
        return y if bias is None else y + bias
    y = torch.mv(weight, x[0]) if bias is None else torch.addmv(bias, weight, x[0])
    return y[None]


def _int8_linear(x, weight, scale):
    # reads one byte per weight, but past the end of a row whose length is not a multiple of 16
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.shape[1] % 16 == 0:
        return torch._weight_int8pack_mm(x.contiguous(), weight.contiguous(), scale.bfloat16())
    return F.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)


def decode_attention(
    qkv: Tensor,
    cache: Tensor,
    position: Tensor,
    *,
    window: int = 0,
    qk_norm: bool = False,
    eps: float = 1e-5,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> Tensor:
    """Attention of one token of each row, (B, H D); see `kernels.decode_attention`."""
    _, B, Hkv, T, D = cache.shape
    H = qkv.shape[1] // D - 2 * Hkv
    qk, v = qkv.view(B, H + 2 * Hkv, D).split((H + Hkv, Hkv), dim=1)
    angles = (x if x is None else x[position] for x in (cos, sin))
    qk = _positioned(qk, qk_norm, eps, *angles)
    q, k = qk.split((H, Hkv), dim=1)  # (B, H, D), (B, Hkv, D)
    begin, last, seen = 0, T - 1, None
    if B and qkv.device.type == "cpu":  # on a GPU this would synchronise
        positions = position.tolist()
        first, last = min(positions), max(positions)
        begin = max(0, first - window + 1) if window else 0
    if B and qkv.device.type == "cpu" and first == last:  # as in `generate`: no key is hidden
        cache[0, :, :, last], cache[1, :, :, last] = k, v
    else:
        row = torch.arange(B, device=qkv.device)
        cache[0, row, :, position], cache[1, row, :, position] = k, v
        key = torch.arange(begin, last + 1, device=qkv.device)
        seen = key <= position[:, None]  # (B, T)
        if window:
            seen &= key > position[:, None] - window
        seen = seen[:, None, None]
    k, v = cache[:, :, :, begin : last + 1]
    q = q.unflatten(1, (Hkv, -1))  # (B, Hkv, H / Hkv, D): the queries of a group as rows
    out = fused_attention(q, k, v, attn_mask=seen)
    return out.flatten(1)  # (B, H D)


def sample_token(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: Tensor | None = None,
) -> Tensor:
    """Sample a token of each row: logits (B, V) -> (B,) int64, as `Ops.sample_token` describes.

    Raises ValueError for options that are out of range.
    """
    B, V = logits.shape
    scale = check_sampling_rule(temperature, top_k, top_p)
    if temperature == 0.0:
        return logits.argmax(-1)
    x = logits.float()
    z = (x - x.amax(-1, keepdim=True)) / scale
    if 0 < top_k < V:
        z = z.masked_fill(x < x.topk(top_k, dim=-1).values[:, -1:], float("-inf"))
    if top_p < 1.0:
        p, order = z.softmax(-1).sort(dim=-1, descending=True)
        first = torch.searchsorted(-p, -p)  # of the equally likely tokens
        more_likely = (p.cumsum(-1) - p).gather(-1, first)  # probability of more likely tokens
        out = torch.empty_like(z, dtype=torch.bool).scatter_(-1, order, more_likely >= top_p)
        z = z.masked_fill(out, float("-inf"))
    # the argmax of z + Gumbel noise is a sample from softmax(z)
    noise = -(-torch.log1p(-_uniform(B, V, z.device, seed))).log()
    return (z + noise).argmax(-1)


def _uniform(B, V, device, seed):
    """Uniform numbers (B, V) in (0, 1): splitmix64 (Steele, Lea and Flood 2014) of seed and index.

    Unlike PyTorch's generators this is a function of a seed on the device, so that a CUDA graph
    samples anew when its seed changes, and one seed gives the same numbers everywhere.
    """
    if seed is None:
        seed = torch.randint(2**63 - 1, (), device=device)
    index = torch.arange(1, B * V + 1, device=device).view(B, V)
    z = seed + index * -0x61C8864680B583EB  # constants as int64 with the same bits
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    z = z ^ (z >> 31 & (1 << 33) - 1)
    return ((z >> 32 & (1 << 32) - 1) + 0.5) * 2.0**-32


OPS = Ops(
    *(embedding, layer_norm, rms_norm, add_layer_norm, attention, attention_qkv, feed_forward),
    *(cross_entropy, linear_cross_entropy, adamw),
    *(decode_linear, decode_attention, sample_token),
)
