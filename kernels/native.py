"""Every operation as PyTorch ships it. In fp64 it is the oracle of the tests.

Shapes are in `kernels.Ops`. Dropout draws from PyTorch's generator, so `seed` is not used here.
"""

import torch
from torch.nn import functional as F

from kernels import Ops


def embedding(tokens, token_table, position_table=None):
    x = F.embedding(tokens, token_table)  # (B, T, C)
    return x if position_table is None else x + position_table[: tokens.shape[1]]


def layer_norm(x, weight, bias=None, *, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def rms_norm(x, weight=None, *, eps=1e-5):
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def add_layer_norm(residual, x, weight, bias=None, *, eps=1e-5, dropout_p=0.0, seed=None):
    total = residual + F.dropout(x, dropout_p)
    return total, F.layer_norm(total, total.shape[-1:], weight, bias, eps)


def attention(q, k, v, *, causal=True, dropout_p=0.0, scale=None, seed=None):
    grouped = q.shape[1] != k.shape[1]
    if q.device.type == "cpu" and k.shape[2] <= SHORT and not grouped:
        return _attention_by_products(q, k, v, causal, dropout_p, scale)
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=causal, dropout_p=dropout_p, scale=scale, enable_gqa=grouped
    )


# On a CPU the backward of PyTorch's fused attention takes three to four times as long as plain
# matrix products in bf16 (T = 64 to 256); past this length the weights would fill the memory.
SHORT = 512


def _attention_by_products(q, k, v, causal, dropout_p, scale):
    B, H, T, D = q.shape
    mask = q.new_zeros(T, k.shape[2])
    if causal:
        mask = mask.fill_(float("-inf")).triu(1)  # -inf above the diagonal
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)  # (B*H, T, D)
    scale = D**-0.5 if scale is None else scale
    weights = torch.baddbmm(mask, q, k.mT, alpha=scale).softmax(-1)  # (B*H, T, T)
    return (F.dropout(weights, dropout_p) @ v).view(B, H, T, D)


def attention_qkv(qkv, n_head, *, causal=True, dropout_p=0.0, scale=None, seed=None):
    q, k, v = qkv.unflatten(2, (3, n_head, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
    out = attention(q, k, v, causal=causal, dropout_p=dropout_p, scale=scale)  # (B, H, T, D)
    return out.transpose(1, 2).flatten(2)  # (B, T, C)


ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu_squared": lambda x: F.relu(x).square(),
}


def feed_forward(x, w1, b1, w2, b2, *, activation="gelu", dropout_p=0.0, seed=None):
    hidden = ACTIVATIONS[activation](F.linear(x, w1, b1))  # (..., F)
    return F.dropout(F.linear(hidden, w2, b2), dropout_p)


def cross_entropy(logits, targets, *, ignore_index=-100):
    logits, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    exact = logits if logits.dtype == torch.float64 else logits.float()
    loss = F.cross_entropy(exact, targets, ignore_index=ignore_index, reduction="sum")
    return loss / (targets != ignore_index).sum().clamp(min=1)  # 0, not NaN, when none counts


def linear_cross_entropy(x, weight, bias, targets, *, ignore_index=-100):
    return cross_entropy(F.linear(x, weight, bias), targets, ignore_index=ignore_index)


def adamw(params, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
    groups = [entry if isinstance(entry, dict) else {"params": [entry]} for entry in params]
    options = {}
    if all(parameter.is_cuda for group in groups for parameter in group["params"]):
        # one launch per step, which a CUDA graph can hold: the learning rate is on the device
        options = {"fused": True, "capturable": True}
        lr = torch.tensor(lr, device=groups[0]["params"][0].device)
    return torch.optim.AdamW(
        groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **options
    )


def linear_step(
    x,
    weight,
    bias=None,
    *,
    scale=None,
    norm=None,
    norm_weight=None,
    norm_bias=None,
    eps=1e-5,
    activation=None,
    residual=None,
):
    if norm == "layer_norm":
        x = layer_norm(x, norm_weight, norm_bias, eps=eps)
    elif norm == "rms_norm":
        x = rms_norm(x, norm_weight, eps=eps)
    y = _linear(x, weight) if scale is None else _int8_linear(x, weight, scale)
    if bias is not None:
        y = y + bias
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    return y if residual is None else residual + y


def _linear(x, weight):
    """x @ weight^T; a single fp32 row on a CPU as two products.

    Of two, PyTorch computes each by itself, on all cores. One alone is MKL's matrix-vector product,
    on one core: on two cores of an AMD EPYC it took 4.5 times as long.
    """
    one_row = x.device.type == "cpu" and x.dtype == torch.float32 and len(x) == 1
    if one_row and len(weight) % 2 == 0:
        return torch.bmm(weight.unflatten(0, (2, -1)), x.T.expand(2, -1, 1)).view(1, -1)
    return F.linear(x, weight)


def _int8_linear(x, weight, scale):
    # reads a byte per weight, and beyond the row's end where that is no multiple of 16
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.shape[1] % 16 == 0:
        return torch._weight_int8pack_mm(x.contiguous(), weight.contiguous(), scale.bfloat16())
    return F.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)


def attention_step(qkv, cache, position, *, qk_norm=False, eps=1e-5, cos=None, sin=None):
    _, B, H, T, D = cache.shape
    qk, v = qkv.view(B, 3 * H, D).split((2 * H, H), dim=1)
    if qk_norm:
        qk = rms_norm(qk, eps=eps)
    if cos is not None:
        turned = qk.roll(D // 2, dims=-1) * sin[position][:, None].to(qk.dtype)
        qk = torch.addcmul(turned, qk, cos[position][:, None].to(qk.dtype))
    q, k = qk.split(H, dim=1)  # (B, H, D) each
    row = torch.arange(B, device=qkv.device)
    cache[0, row, :, position], cache[1, row, :, position] = k, v
    if B and qkv.device.type == "cpu":
        T = int(position.max()) + 1  # no wait there; on a card all keys are read, and masked
    key = torch.arange(T, device=qkv.device)
    seen = (key <= position[:, None])[:, None, None]  # (B, 1, 1, T)
    k, v = cache[:, :, :, :T]
    return F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=seen).flatten(1)


def draw(logits, *, temperature=1.0, top_k=0, top_p=1.0, seed=None):
    B, V = logits.shape
    if temperature == 0.0:
        return logits.argmax(-1)
    z = logits.float() / temperature
    kept = torch.ones_like(z, dtype=torch.bool)
    if 0 < top_k < V:
        kept &= z >= z.topk(top_k, dim=-1).values[:, -1:]
    if top_p < 1.0:
        p, order = z.softmax(-1).sort(dim=-1, descending=True)
        first = torch.searchsorted(-p, -p)  # of the tokens that are as likely
        likelier = (p.cumsum(-1) - p).gather(-1, first)
        kept &= torch.empty_like(kept).scatter_(-1, order, likelier < top_p)
    # where z + Gumbel noise is largest is a draw from softmax(z)
    noise = -(-torch.log1p(-_uniform(B, V, z.device, seed))).log()
    return (z + noise).masked_fill(~kept, float("-inf")).argmax(-1)


def _uniform(B, V, device, seed):
    """Numbers in (0, 1), (B, V), by splitmix64 (Steele, Lea and Flood 2014) of seed and place.

    A function of a seed that lies on the device, which PyTorch's own generators are not: a CUDA
    graph draws anew when its seed has moved on, and the same seed draws the same everywhere.
    """
    if seed is None:
        seed = torch.randint(2**63 - 1, (), device=device)
    place = torch.arange(1, B * V + 1, device=device).view(B, V)
    z = seed + place * -0x61C8864680B583EB  # the constants as the int64 of the same bits
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    z = z ^ (z >> 31 & (1 << 33) - 1)
    return ((z >> 32 & (1 << 32) - 1) + 0.5) * 2.0**-32


OPS = Ops(
    embedding,
    layer_norm,
    rms_norm,
    add_layer_norm,
    attention,
    attention_qkv,
    feed_forward,
    cross_entropy,
    linear_cross_entropy,
    adamw,
    linear_step,
    attention_step,
    draw,
)
