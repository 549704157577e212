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
    B, T, _ = qkv.shape
    q, k, v = qkv.view(B, T, 3, n_head, -1).permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
    out = attention(q, k, v, causal=causal, dropout_p=dropout_p, scale=scale)  # (B, H, T, D)
    return out.transpose(1, 2).reshape(B, T, -1)  # (B, T, C)


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
)
