"""The lecture's modules with packed weights, over a table of operations (`kernels.Ops`).

Each class is the one of the same name in `gpt/models/reference.py`, computed by the operations of
`ops`; this file does not know which implementation serves them. The lecture's two lines of a block,

    x = x + sa(ln1(x))
    x = x + ffwd(ln2(x))

are cut before their norms instead of after their sums, so that residual, dropout and norm are one
operation (`gpt/models/residual.py`). The same `Block.forward` trains, fills a cache of keys and
values, and decodes with it.

Letters: B batch, T time, C channels (n_embd), H heads, Hkv heads of keys and values, D head size;
while decoding, x is (R, C), one token of each row, instead of (B, T, C).
"""

from typing import Any, Protocol

import torch
import torch.nn as nn

from ..config.model import ROPE_BASE, ModelConfig
from .residual import IntoStream, Linear, Normalised, Residual, decode_linear, total

MASKS = 3  # of dropout in a block: the attention weights, and what its two branches add


class LayerCache(Protocol):
    """The keys and values that one layer has kept (`gpt/generation/kv_cache.py`)."""

    def attend(self, attention: "MultiHeadAttention", qkv: torch.Tensor) -> torch.Tensor:
        """Keep the keys and values of `qkv`; return what its queries read, (..., C)."""
        ...


class Norm(nn.Module):
    """LayerNorm or RMSNorm with weight (C,) and an optional bias (C,)."""

    def __init__(self, config: ModelConfig, ops):
        super().__init__()
        self.ops = ops
        self.kind, self.eps = config.norm, config.norm_eps
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        has_bias = config.bias and config.norm == "layer_norm"
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if has_bias else None

    def forward(self, stream):
        return self.add(stream)[1]

    def add(self, stream):
        """Return the residual stream as one tensor, and its norm."""
        x = stream.x if isinstance(stream, Residual) else stream
        if x is not None and x.dim() == 2:  # decoding: linear layers compute both
            if isinstance(stream, Residual):
                x = decode_linear(self.ops, *stream.branch, residual=x)
            return x, Normalised(x, self)
        if self.kind == "layer_norm" and isinstance(stream, Residual):
            x, branch, x_bias, dropout_p, seed = stream
            options = {"x_bias": x_bias, "eps": self.eps, "dropout_p": dropout_p, "seed": seed}
            return self.ops.add_layer_norm(x, branch, self.weight, self.bias, **options)
        x = total(stream)
        if self.kind == "rms_norm":
            return x, self.ops.rms_norm(x, self.weight, eps=self.eps)
        return x, self.ops.layer_norm(x, self.weight, self.bias, eps=self.eps)


class PackedProjection(Linear):
    """The heads' [query | key | value] as the rows of one matrix ((H + 2 Hkv) D, C), or (3C, C)."""

    def __init__(self, config: ModelConfig):
        counts, D = config.head_counts, config.n_embd // config.n_head
        super().__init__(config.n_embd, sum(counts) * D, bias=config.has_qkv_bias)
        self.counts = counts
        self.matrices = sum(counts)  # (D, C) each, for an optimizer that works on matrices


class Rotary(nn.Module):
    """Rotary position embedding over (B, T, H, D), with the angles computed once."""

    cos: torch.Tensor  # (block_size, 1, D)
    sin: torch.Tensor  # (block_size, 1, D)

    def __init__(self, config: ModelConfig):
        super().__init__()
        D = config.n_embd // config.n_head
        frequency = ROPE_BASE ** (-torch.arange(0, D, 2).float() / D)  # (D/2,)
        angle = torch.arange(config.block_size).float()[:, None, None] * frequency  # (T, 1, D/2)
        cos, sin = angle.cos(), angle.sin()
        self.register_buffer("cos", torch.cat((cos, cos), dim=-1), persistent=False)
        self.register_buffer("sin", torch.cat((-sin, sin), dim=-1), persistent=False)

    def forward(self, x):
        T, D = x.shape[1], x.shape[-1]
        cos, sin = self.cos[:T].to(x.dtype), self.sin[:T].to(x.dtype)
        # halves (a, b) become (a cos - b sin, b cos + a sin); rolling by D/2 gives (b, a)
        return torch.addcmul(x * cos, x.roll(D // 2, dims=-1), sin)


class MultiHeadAttention(nn.Module):
    """The lecture's heads as one batch dimension (its exercise 1)."""

    def __init__(self, config: ModelConfig, ops):
        super().__init__()
        self.ops = ops
        self.window = config.window
        self.counts = config.head_counts
        self.dropout_p = config.dropout
        self.qk_norm, self.eps = config.qk_norm, config.norm_eps
        self.qkv = PackedProjection(config)
        self.rotary = Rotary(config) if config.position == "rope" else None
        # its bias and the dropout are left to the next norm
        self.proj = IntoStream(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x, cache: LayerCache | None = None, ranges=None, seed=None):
        qkv = self.qkv(x)  # (B, T, (H + 2 Hkv) D)
        if cache is None:
            return self.proj(self.attend(qkv, ranges, seed))
        return self.proj(cache.attend(self, qkv))

    def attend(self, qkv, ranges=None, seed=None):
        """Attention within the contexts of qkv (B, T, (H + 2 Hkv) D) -> (B, T, C).

        ranges: the keys that each token may see, by `kernels.KeyRanges`. seed: of the dropout.
        """
        dropout_p = self.dropout_p if self.training else 0.0
        H, Hkv, _ = self.counts
        options = {"window": self.window, "ranges": ranges, "seed": seed}
        options |= {"n_kv_head": Hkv, "dropout_p": dropout_p} | self.qk_options
        return self.ops.attention_qkv(qkv, H, **options)

    @property
    def qk_options(self) -> dict[str, Any]:
        """How queries and keys are normalised and rotated; cos and sin are (block_size, D)."""
        options: dict[str, Any] = {"qk_norm": self.qk_norm, "eps": self.eps}
        if self.rotary is not None:
            options |= {"cos": self.rotary.cos[:, 0], "sin": self.rotary.sin[:, 0]}
        return options

    def keys_and_values(self, qkv):
        """Keys, normalised and rotated, and values: (B, Hkv, T, D) each."""
        heads = qkv.unflatten(2, (sum(self.counts), -1))  # (B, T, H + 2 Hkv, D)
        _, k, v = heads.split(self.counts, dim=2)
        if self.qk_norm:
            k = self.ops.rms_norm(k, None, eps=self.eps)
        if self.rotary is not None:
            k = self.rotary(k)
        return k.transpose(1, 2), v.transpose(1, 2)


class FeedForward(nn.Module):
    """A linear layer to four times the width, a non-linearity, and a linear layer back."""

    def __init__(self, config: ModelConfig, ops):
        super().__init__()
        self.ops = ops
        self.activation = config.activation
        width = config.feed_forward_width
        self.up = Linear(config.n_embd, width, bias=config.bias)
        self.down = IntoStream(width, config.n_embd, bias=config.bias)

    def forward(self, x):
        up, down, activation = self.up, self.down, self.activation
        if isinstance(x, Normalised):
            return down(up(x, activation))
        return self.ops.feed_forward(
            x, up.weight, up.bias, down.weight, None, activation=activation
        )


class Block(nn.Module):
    """Transformer block: communication followed by computation, (B, T, C) or `Residual`."""

    def __init__(self, config: ModelConfig, ops):
        super().__init__()
        self.dropout_p = config.dropout
        self.sa = MultiHeadAttention(config, ops)
        self.ffwd = FeedForward(config, ops)
        self.ln1 = Norm(config, ops)
        self.ln2 = Norm(config, ops)

    def forward(
        self, stream, cache: LayerCache | None = None, ranges=None, seeds=(None,) * MASKS
    ) -> Residual:
        dropout_p = self.dropout_p if self.training else 0.0
        of_attention, of_sa, of_ffwd = seeds
        x, y = self.ln1.add(stream)
        y = self.sa(y, cache, ranges, of_attention)
        x, y = self.ln2.add(Residual(x, y, self.sa.proj.bias, dropout_p, of_sa))
        return Residual(x, self.ffwd(y), self.ffwd.down.bias, dropout_p, of_ffwd)
