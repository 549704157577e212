"""A GPT that keeps the keys and values of earlier tokens: what is new costs one token, not T.

`fill` computes a context at once and keeps its keys and values; `step` takes the next token of each
row, one operation for each matrix; `extend` takes some of a row at once. All compute what
`gpt/models/packed.py` does on the whole context: at position t of every layer, key and value depend on the
tokens 0 ... t alone.

They depend on *all* of these, which is why a cache cannot roll. When the context moves on and its
first token falls out, learned positions shift by one for every token; with rotary positions the
first layer's keys could stay, but from the second layer on they are made of values that have seen
the token which is gone. What equals the cropped context is a new `fill`, and nothing else does.

Letters: B rows, T time, C channels, H heads, Hkv heads of keys and values, D head size,
V vocabulary.
"""

import torch
from torch.nn import functional as F

from gpt.config.model import NORM_EPS
from gpt.generation.int8 import Quantized
from gpt.models.packed import GPT, gate
from gpt.models.residual import Residual, total


class CachedGPT:
    """`model` and B rows of text of any lengths, all state on the device, no size ever changing.

    Row b has position[b] tokens behind it, kept at 0 ... position[b] - 1 of its cache. What lies
    beyond is not seen by any query before it is written.
    """

    def __init__(self, model: GPT, rows: int):
        config, weight = model.config, model.ln_f.weight
        self.model = model
        D = config.n_embd // config.n_head
        shape = (config.n_layer, 2, rows, config.head_counts[1], config.block_size, D)
        self.cache = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.position = torch.zeros(rows, dtype=torch.int64, device=weight.device)  # (B,)

    def fill(self, rows, tokens, lengths) -> None:
        """Let rows (R,) begin anew with the first lengths (R,) of tokens (R, T).

        Shorter contexts are filled up on the right, where no earlier token looks.
        """
        self.position[rows] = lengths
        T = tokens.shape[1]
        if T == 0:
            return
        blocks = self.model.blocks
        x = self.model.embed(tokens)  # (R, T, C)
        for block, cache in zip(blocks, self.cache, strict=True):
            qkv = block.sa.qkv(block.ln1(x))  # (R, T, (H + 2 Hkv) D)
            _, k, v = block.sa.position_queries_and_keys(qkv)  # (R, Hkv, T, D)
            cache[0, rows, :, :T], cache[1, rows, :, :T] = k, v
            if block is not blocks[-1]:  # whose output would only make logits
                x, y = block.ln2.add(Residual(x, block.sa.attend(qkv), block.sa.proj.bias, 0.0))
                x = total(Residual(x, block.ffwd(y), block.ffwd.down.bias, 0.0))

    def step(self, token) -> torch.Tensor:
        """The logits (B, V) that follow token (B,), which becomes part of the rows."""

        def attend(sa, qkv, cache):
            options = {"qk_norm": sa.qk_norm, "eps": NORM_EPS, "window": sa.window}
            options |= sa.angles
            return self.model.ops.decode_attention(qkv, cache, self.position, **options)

        logits = self._next(token, self.position, attend)
        self.position += 1
        return logits

    def extend(self, tokens) -> torch.Tensor:
        """The logits (K, V) that follow each of tokens (K,), which become part of the only row.

        Every weight is read once, where K steps would read it K times. The host looks at the
        position, so this is nothing for a CUDA graph.
        """
        start = int(self.position)
        place = torch.arange(start + len(tokens), device=tokens.device)
        seen = place <= place[start:, None]  # (K, T)
        if window := self.model.config.window:
            seen &= place > place[start:, None] - window

        def attend(sa, qkv, cache):
            q, k, v = sa.position_queries_and_keys(qkv[None], start)  # (1, H, K, D)
            keys, values = cache[:, :, :, : len(place)]
            keys[:, :, start:], values[:, :, start:] = k, v
            grouped = q.shape[1] != keys.shape[1]
            out = F.scaled_dot_product_attention(
                q, keys, values, attn_mask=seen, enable_gqa=grouped
            )
            return out[0].transpose(0, 1).flatten(1)  # (K, C)

        logits = self._next(tokens, place[start:], attend)
        self.position += len(tokens)
        return logits

    def _next(self, tokens, position, attend) -> torch.Tensor:
        """Logits (R, V) of R tokens at their positions, one operation for each matrix."""
        model = self.model
        x = model.token_embedding_table(tokens)  # (R, C)
        if model.config.position == "learned":
            x = x + model.position_embedding_table(position)
        for block, cache in zip(model.blocks, self.cache, strict=True):
            sa, ffwd = block.sa, block.ffwd
            heads = attend(sa, self._linear(sa.qkv, x, block.ln1), cache)  # (R, C)
            x = self._linear(sa.proj, heads, residual=x)  # (R, C)
            if ffwd.activation == "swiglu":
                hidden = gate(self._linear(ffwd.up, x, block.ln2))
            else:
                hidden = self._linear(ffwd.up, x, block.ln2, activation=ffwd.activation)  # (R, 4C)
            x = self._linear(ffwd.down, hidden, residual=x)  # (R, C)
        return model.cap(self._linear(model.lm_head, x, model.ln_f))

    def _linear(self, linear, x, norm=None, **options):
        """residual + activation(linear(norm(x))) of one token, as one operation."""
        if norm is not None:
            options |= {
                "norm": norm.kind,
                "norm_weight": norm.weight,
                "norm_bias": norm.bias,
                "eps": NORM_EPS,
            }
        if isinstance(linear, Quantized):
            weight, options["scale"] = linear.int8, linear.scale
        else:
            weight = linear.weight
        return self.model.ops.decode_linear(x, weight, linear.bias, **options)
