"""The GPT that is trained and sampled: packed weights, over a table of operations.

`ops` is any record with the operations of `kernels.Ops`. For every config the logits, the loss and
the gradients equal those of `gpt/models/reference.py` once `gpt/models/layouts.py` has mapped the
weights, and a fresh model drawn from the same seed has the same weights.

Letters: B batch, T time, C channels (n_embd), V vocabulary, D head size; R rows that are decoded.
"""

import torch
import torch.nn as nn

from ..config.model import IGNORE_INDEX, ModelConfig
from .layers import MASKS, Block, Norm, PackedProjection
from .reference import Blocks, initialise_projections, number_documents
from .residual import Linear, Residual


class GPT(nn.Module):
    """GPT over an `Ops` table.

    tokens (B, T) int64 -> logits (B, T, V), None.
    tokens and targets (B, T) int64 -> None, loss (): the logits are never held whole, so they
    are not returned. Targets equal to -1 are ignored.
    tokens (R,) int64 and a cache -> logits (R, V), None: one token at each cache.position (R,).
    """

    def __init__(self, config: ModelConfig, ops):
        super().__init__()
        self.config = config
        self.ops = ops
        self.token_embedding_table = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.position_embedding_table = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = Blocks(*[Block(config, ops) for _ in range(config.n_layer)])
        self.ln_f = Norm(config, ops)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tied_head:
            self.lm_head.weight = self.token_embedding_table.weight
        self.initialise()

    def initialise(self) -> None:
        """Draw all weights from the global generator, in the order of the reference."""
        self.apply(self._init_weights)
        initialise_projections(self.blocks, self.config)

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

    def forward(self, tokens, targets=None, cache=None):
        if cache is None:
            options = {}
            if self.config.document_mask:
                documents = number_documents(tokens, self.config.end_of_text)
                options["ranges"] = self.ops.document_ranges(documents)
            seeds, of_embedding = self.dropout_seeds(tokens.device)
            x, p = self.embed(tokens), self.config.embedding_dropout_p  # (B, T, C)
            if self.training and p:
                x = Residual(None, x, None, p, of_embedding)  # dropped by the first norm
            for block, of_block in zip(self.blocks, seeds, strict=True):
                x = block(x, seeds=of_block, **options)  # (B, T, C)
        else:
            x = self.token_embedding_table(tokens)  # (R, C)
            if self.config.position == "learned":
                x = x + self.position_embedding_table(cache.position)
            for block, layer in zip(self.blocks, cache.layers, strict=True):
                x = block(x, layer)
        x = self.ln_f(x)
        cap = self.config.logit_softcap
        if targets is None:
            logits = self.lm_head(x)  # (B, T, V) or (R, V)
            return cap * torch.tanh(logits / cap) if cap else logits, None
        operands = x, self.lm_head.weight, self.lm_head.bias, targets
        options = {"ignore_index": IGNORE_INDEX, "softcap": cap}
        return None, self.ops.linear_cross_entropy(*operands, **options)

    def dropout_seeds(self, device):
        """The seeds of the masks of each block and of the embedding, drawn at once: () each.

        They are None to drop nothing.
        """
        layers, config = len(self.blocks), self.config
        if not self.training or not (config.dropout or config.embedding_dropout_p):
            return [[None] * MASKS] * layers, None
        # two numbers for each seed, so that the kernels' pointers to them are aligned to 16 bytes
        *seeds, of_embedding = torch.randint(2**63 - 1, (layers + 1, MASKS, 2), device=device)
        return [seed[:, 0] for seed in seeds], of_embedding[0, 0]

    def embed(self, tokens):
        """Contexts (B, T) -> (B, T, C), each from position 0 on."""
        position = None
        if self.config.position == "learned":
            position = self.position_embedding_table.weight  # (block_size, C)
        device, dtype = tokens.device.type, None
        if device != "meta" and torch.is_autocast_enabled(device):
            # the residual stream in the dtype of the products: half the bytes, as in llm.c
            dtype = torch.get_autocast_dtype(device)
        table = self.token_embedding_table.weight
        return self.ops.embedding(tokens, table, position, dtype=dtype)  # (B, T, C)
