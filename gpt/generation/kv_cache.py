"""Keys and values of earlier tokens, so that a new token costs one token's work and not T tokens'.

Both ways to add tokens run the model's own `Block.forward` with a cache, and give what the
model gives for the whole context: at position t of every layer, key and value depend on the tokens
0 ... t alone.

    prefill           the whole contexts at once, without logits
    decode_one_token  the next token of each row, one operation for each matrix

A cache cannot roll. When the context moves on and its first token drops out, learned positions
shift by one for every token; with rotary positions the keys of the first layer could stay, but from
the second layer on they are computed from values that have seen the dropped token. Only another
`prefill` equals the cropped context.
"""

from typing import NamedTuple, cast

import torch

from ..models.layers import Block, MultiHeadAttention
from ..models.packed import GPT
from ..models.residual import total


class CachedGPT:
    """`model` and B rows of text of one length. All state is on the device and never resized.

    Row b has position[b] tokens so far, kept at 0 ... position[b] - 1 of its cache. Whatever is
    beyond is overwritten before any query sees it.
    """

    def __init__(self, model: GPT, rows: int):
        config, weight = model.config, model.ln_f.weight
        self.model = model
        D = config.n_embd // config.n_head
        shape = (config.n_layer, 2, rows, config.head_counts[1], config.block_size, D)
        self.cache = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.position = torch.zeros(rows, dtype=torch.int64, device=weight.device)  # (B,)
        self.counters = [self.position]  # int64, advanced together: one kernel for all
        self.layers = [OneToken(cache, self.position) for cache in self.cache]

    def prefill(self, tokens: torch.Tensor) -> None:
        """Restart the rows with the contexts tokens (B, T), which may be empty."""
        self.position.fill_(tokens.shape[1])
        if tokens.shape[1] == 0:
            return
        *blocks, last = cast(list[Block], list(self.model.blocks))
        layers = [Prefill(cache) for cache in self.cache]
        x = self.model.embed(tokens)  # (B, T, C)
        for block, layer in zip(blocks, layers, strict=False):
            x = total(block(x, layer))
        # the rest of the last block would only make logits
        layers[-1].keep(last.sa, last.sa.qkv(last.ln1(x)))

    def decode_one_token(self, token: torch.Tensor) -> torch.Tensor:
        """Append token (B,) to the rows, and return the logits (B, V) of the next one."""
        logits, _ = self.model(token, cache=self)
        torch._foreach_add_(self.counters, 1)
        return logits


class Prefill(NamedTuple):
    """One layer's cache while whole contexts are computed: they see only themselves."""

    cache: torch.Tensor  # (2, B, Hkv, block_size, D)

    def attend(self, attention: MultiHeadAttention, qkv: torch.Tensor) -> torch.Tensor:
        self.keep(attention, qkv)
        return attention.attend(qkv)

    def keep(self, attention: MultiHeadAttention, qkv: torch.Tensor) -> None:
        T = qkv.shape[1]
        self.cache[0, :, :, :T], self.cache[1, :, :, :T] = attention.keys_and_values(qkv)


class OneToken(NamedTuple):
    """One layer's cache while the next token of each row is decoded."""

    cache: torch.Tensor  # (2, B, Hkv, block_size, D)
    position: torch.Tensor  # (B,)

    def attend(self, attention: MultiHeadAttention, qkv: torch.Tensor) -> torch.Tensor:
        options = {"window": attention.window, **attention.qk_options}
        return attention.ops.decode_attention(qkv, self.cache, self.position, **options)
