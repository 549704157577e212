"""The same GPT with packed weights, over a table of operations.

`ops` is any record with the operations of `kernels.Ops`; this file does not know which
implementation serves them. Only the leaf modules call it. The lecture's two lines of a block,
x = x + sa(ln1(x)) and x = x + ffwd(ln2(x)), are cut before their norms instead of behind their
sums, so that residual, dropout and norm are one operation. For every config the logits, the loss
and the gradients equal those of `gpt/models/reference.py` after `gpt/models/layouts.py` has mapped the weights,
and a fresh model drawn from the same seed has the same weights.

Letters: B batch, T time, C channels (n_embd), V vocabulary, H heads, Hkv heads of keys and values,
D head size.
"""

import torch
import torch.nn as nn
from torch.nn import functional as F

from gpt.config.model import IGNORE_INDEX, NORM_EPS, ROPE_BASE, ModelConfig
from gpt.models.encoder_decoder import EncoderDecoder
from gpt.models.residual import IntoStream, Residual, total


class Norm(nn.Module):
    """LayerNorm or RMSNorm with weight (C,) and bias (C,) or none."""

    def __init__(self, config: ModelConfig, ops):
        super().__init__()
        self.ops = ops
        self.kind = config.norm
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        has_bias = config.bias and config.norm == "layer_norm"
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if has_bias else None

    def forward(self, stream):
        return self.add(stream)[1]

    def add(self, stream):
        """The residual stream as one tensor, and its norm."""
        if self.kind == "layer_norm" and isinstance(stream, Residual):
            x, branch, x_bias, dropout_p = stream
            options = {"x_bias": x_bias, "eps": NORM_EPS, "dropout_p": dropout_p}
            return self.ops.add_layer_norm(x, branch, self.weight, self.bias, **options)
        x = total(stream)
        if self.kind == "rms_norm":
            return x, self.ops.rms_norm(x, self.weight, eps=NORM_EPS)
        return x, self.ops.layer_norm(x, self.weight, self.bias, eps=NORM_EPS)


class PackedProjection(nn.Linear):
    """query, key and value of all heads as one matrix: rows are [query | key | value].

    It is ((H + 2 Hkv) D, C), and so (3C, C) where no heads share keys and values.
    """

    def __init__(self, config: ModelConfig):
        counts, D = config.head_counts, config.n_embd // config.n_head
        super().__init__(config.n_embd, sum(counts) * D, bias=config.qkv_bias)
        self.counts = counts
        self.matrices = sum(counts)  # (D, C) each, for an optimizer that works on matrices


class Rotary(nn.Module):
    """Rotary position embedding over (B, T, H, D), the angles computed once."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        D = config.n_embd // config.n_head
        frequency = ROPE_BASE ** (-torch.arange(0, D, 2).float() / D)  # (D/2,)
        angle = torch.arange(config.block_size).float()[:, None, None] * frequency  # (T, 1, D/2)
        cos, sin = angle.cos(), angle.sin()
        self.register_buffer("cos", torch.cat((cos, cos), dim=-1), persistent=False)  # (T, 1, D)
        self.register_buffer("sin", torch.cat((-sin, sin), dim=-1), persistent=False)

    def forward(self, x, start=0):
        T, D = x.shape[1], x.shape[-1]
        cos, sin = self.cos[start : start + T].to(x.dtype), self.sin[start : start + T].to(x.dtype)
        # halves (a, b) become (a cos - b sin, b cos + a sin); rolling by D/2 gives (b, a)
        return torch.addcmul(x * cos, x.roll(D // 2, dims=-1), sin)


class MultiHeadAttention(nn.Module):
    """The lecture's heads as one batch dimension (its exercise 1)."""

    def __init__(self, config: ModelConfig, ops, causal=True):
        super().__init__()
        self.ops = ops
        self.causal = causal
        self.window = config.window if causal else 0
        self.counts = config.head_counts
        self.dropout_p = config.dropout
        self.qk_norm = config.qk_norm
        self.qkv = PackedProjection(config)
        self.rotary = Rotary(config) if config.position == "rope" else None
        self.proj = IntoStream(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        """All but the bias of `proj` and the last dropout, which the next norm applies."""
        return self.attend(self.qkv(x))  # by way of (B, T, (H + 2 Hkv) D)

    def attend(self, qkv):
        dropout_p = self.dropout_p if self.training else 0.0
        options = {"causal": self.causal, "window": self.window, "dropout_p": dropout_p}
        H, Hkv, _ = self.counts
        if self.qk_norm or self.rotary is not None:
            options |= {"qk_norm": self.qk_norm, "eps": NORM_EPS} | self.angles
        out = self.ops.attention_qkv(qkv, H, n_kv_head=Hkv, **options)  # (B, T, C)
        return self.proj(out)

    @property
    def angles(self) -> dict[str, torch.Tensor]:
        """cos and sin (block_size, D) of the positions, where these are rotary."""
        rotary = self.rotary
        return {} if rotary is None else {"cos": rotary.cos[:, 0], "sin": rotary.sin[:, 0]}

    def position_queries_and_keys(self, qkv, start=0):
        H, Hkv, _ = self.counts
        heads = qkv.unflatten(2, (H + 2 * Hkv, -1))  # (B, T, H + 2 Hkv, D)
        qk, v = heads.split((H + Hkv, Hkv), dim=2)
        if self.qk_norm:
            qk = self.ops.rms_norm(qk, None, eps=NORM_EPS)
        if self.rotary is not None:
            qk = self.rotary(qk, start)
        q, k = qk.split((H, Hkv), dim=2)
        # (B, H, T, D), (B, Hkv, T, D) twice
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class CrossAttention(MultiHeadAttention):
    """The same with keys and values of a source, which all queries see whole."""

    def forward(self, x, source):
        C, (H, Hkv, _) = x.shape[-1], self.counts
        widths = (C, 2 * Hkv * C // H)
        bias = (None, None) if self.qkv.bias is None else self.qkv.bias.split(widths)
        into_q, into_kv = self.qkv.weight.split(widths)  # (C, C), (2 Hkv D, C)
        q = F.linear(x, into_q, bias[0]).unflatten(2, (H, -1))  # (B, T, H, D)
        kv = F.linear(source, into_kv, bias[1]).unflatten(2, (2 * Hkv, -1))
        k, v = kv.chunk(2, dim=2)  # (B, S, Hkv, D) each
        if self.qk_norm:
            q, k = (self.ops.rms_norm(each, None, eps=NORM_EPS) for each in (q, k))
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        dropout_p = self.dropout_p if self.training else 0.0
        out = self.ops.attention(q, k, v, causal=False, dropout_p=dropout_p)  # (B, H, T, D)
        return self.proj(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Up to four times the width, a non-linearity, and back down: one operation.

    All but the bias of `down` and the dropout, which the next norm applies.
    """

    def __init__(self, config: ModelConfig, ops):
        super().__init__()
        self.ops = ops
        self.activation = config.activation
        into, out = config.feed_forward_widths
        self.up = nn.Linear(config.n_embd, into, bias=config.bias)
        self.down = IntoStream(out, config.n_embd, bias=config.bias)

    def forward(self, x):
        if self.activation == "swiglu":
            return self.down(gate(self.up(x)))
        return self.ops.feed_forward(
            x,
            self.up.weight,
            self.up.bias,
            self.down.weight,
            None,
            activation=self.activation,
        )


def gate(x):
    """silu(a) * b, where x is a and b side by side."""
    a, b = x.chunk(2, dim=-1)
    return F.silu(a) * b


class Block(nn.Module):
    """Transformer block: communication followed by computation.

    Takes the residual stream as a tensor (B, T, C) or a `Residual`, and returns a `Residual`.
    """

    def __init__(self, config: ModelConfig, ops, causal=True):
        super().__init__()
        self.dropout_p = config.dropout
        self.sa = MultiHeadAttention(config, ops, causal)
        self.ffwd = FeedForward(config, ops)
        self.ln1 = Norm(config, ops)
        self.ln2 = Norm(config, ops)

    def forward(self, stream):
        dropout_p = self.dropout_p if self.training else 0.0
        x, y = self.ln1.add(stream)
        x, y = self.ln2.add(Residual(x, self.sa(y), self.sa.proj.bias, dropout_p))
        return Residual(x, self.ffwd(y), self.ffwd.down.bias, dropout_p)


class DecoderBlock(Block):
    """The same with cross-attention between, (B, T, C) -> (B, T, C)."""

    def __init__(self, config: ModelConfig, ops):
        super().__init__(config, ops)
        self.ca = CrossAttention(config, ops)
        self.ln3 = Norm(config, ops)

    def forward(self, x, source):
        dropout_p = self.dropout_p if self.training else 0.0
        x, y = self.ln1.add(x)
        x, y = self.ln3.add(Residual(x, self.sa(y), self.sa.proj.bias, dropout_p))
        x, y = self.ln2.add(Residual(x, self.ca(y, source), self.ca.proj.bias, dropout_p))
        return total(Residual(x, self.ffwd(y), self.ffwd.down.bias, dropout_p))


def make_blocks(config: ModelConfig, ops) -> nn.Module:
    layers = range(config.n_layer)
    if not config.source_size:
        return nn.Sequential(*[Block(config, ops) for _ in layers])
    encoder = [Block(config, ops, causal=False) for _ in layers]
    decoder = [DecoderBlock(config, ops) for _ in layers]
    return EncoderDecoder(config.source_size, encoder, Norm(config, ops), decoder)


class GPT(nn.Module):
    """GPT over an `Ops` table.

    tokens (B, T) int64 -> logits (B, T, V), None.
    tokens and targets (B, T) int64 -> None, loss (): the logits are never held whole, so they
    are not returned. Targets equal to -1 are not counted.
    """

    def __init__(self, config: ModelConfig, ops):
        super().__init__()
        self.config = config
        self.ops = ops
        self.token_embedding_table = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.position_embedding_table = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.blocks = make_blocks(config, ops)
        self.ln_f = Norm(config, ops)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tied_head:
            self.lm_head.weight = self.token_embedding_table.weight
        self.initialise()

    def initialise(self):
        """Draw all weights from the global generator, in the order of the reference."""
        self.apply(self._init_weights)
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("proj.weight", "down.weight")):
                if self.config.projection_init == "scaled":
                    nn.init.normal_(weight, mean=0.0, std=0.02 / (2 * self.config.n_layer) ** 0.5)
                elif self.config.projection_init == "zero":
                    nn.init.zeros_(weight)

    def _init_weights(self, module):
        if isinstance(module, PackedProjection):
            # the reference draws key, query, value of head 0, then of head 1, ...
            heads = module.weight.detach().unflatten(0, (module.matrices, -1))  # of (D, C) each
            query, key, value = heads.split(module.counts)
            group = len(query) // len(key)
            for h in range(len(query)):
                parts = (key[h // group], query[h], value[h // group])
                for part in (query[h],) if h % group else parts:
                    nn.init.normal_(part, mean=0.0, std=0.02)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, tokens, targets=None):
        x = self.embed(tokens)  # (B, T, C)
        x = self.ln_f(self.blocks(x))  # (B, T, C)
        if targets is None:
            return self.cap(self.lm_head(x)), None  # (B, T, V)
        if self.config.logit_softcap:
            logits = self.cap(self.lm_head(x))  # (B, T, V)
            return None, self.ops.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX)
        loss = self.ops.linear_cross_entropy(
            x, self.lm_head.weight, self.lm_head.bias, targets, ignore_index=IGNORE_INDEX
        )
        return None, loss

    def cap(self, logits):
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def embed(self, tokens):
        position = self.position_embedding_table.weight if self._has_positions else None
        x = self.ops.embedding(tokens, self.token_embedding_table.weight, position)  # (B, T, C)
        if torch.is_autocast_enabled(x.device.type):
            # the residual stream in the dtype of the products: half the bytes, as in llm.c
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return self.dropout(x)

    @property
    def _has_positions(self) -> bool:
        return self.config.position == "learned"
