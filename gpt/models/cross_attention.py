"""Cross-attention with packed weights, for a model with an encoder (an exercise of the lecture).

The counterpart over `kernels.Ops` of what `gpt/models/reference.py` spells out; the encoder itself
is in `gpt/models/encoder_decoder.py`. S is the length of the source, the other letters are those of
`gpt/models/layers.py`.
"""

import torch
from torch.nn import functional as F

from gpt.config.model import NORM_EPS, ModelConfig
from gpt.models.encoder_decoder import EncoderDecoder
from gpt.models.layers import Block, MultiHeadAttention, Norm
from gpt.models.residual import Residual, total


class CrossAttention(MultiHeadAttention):
    """Queries from the text; keys and values from a source, all of which every query sees."""

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


class DecoderBlock(Block):
    """A block with cross-attention in the middle, (B, T, C) -> (B, T, C)."""

    def __init__(self, config: ModelConfig, ops):
        super().__init__(config, ops)
        self.ca = CrossAttention(config, ops)
        self.ln3 = Norm(config, ops)

    def forward(self, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        dropout_p = self.dropout_p if self.training else 0.0
        x, y = self.ln1.add(x)
        x, y = self.ln3.add(Residual(x, self.sa(y), self.sa.proj.bias, dropout_p))
        x, y = self.ln2.add(Residual(x, self.ca(y, source), self.ca.proj.bias, dropout_p))
        return total(Residual(x, self.ffwd(y), self.ffwd.down.bias, dropout_p))


def encoder_decoder(config: ModelConfig, ops) -> EncoderDecoder:
    """The blocks of a model whose config has a `source_size`."""
    layers = range(config.n_layer)
    encoder = [Block(config, ops, causal=False) for _ in layers]
    decoder = [DecoderBlock(config, ops) for _ in layers]
    return EncoderDecoder(config.source_size, encoder, Norm(config, ops), decoder)
