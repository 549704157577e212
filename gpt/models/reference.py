"""The lecture, spelled out: Head, MultiHeadAttention, FeedForward, Block and GPT in plain PyTorch.

This file is the reference that the kernels are tested against. It follows "Let's build GPT: from
scratch, in code, spelled out" line by line and keeps its parameter names, so that a `state_dict`
saved by the lecture's own `gpt.py` loads unchanged and gives the same bits. Later papers' changes
(RoPE, QK norm, RMSNorm, a tied head, other activations, heads that share keys and values, a sliding
window) are spelled out in the same way. Each has a switch in `ModelConfig` that is off in the
lecture's preset.

Letters: B batch, T time, C channels (n_embd), V vocabulary, D head size.
"""

from typing import Any

import torch
import torch.nn as nn
from torch.nn import functional as F

from ..config.model import IGNORE_INDEX, ROPE_BASE, ModelConfig


class Activation(nn.Module):
    """The lecture's ReLU, or a later non-linearity."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.kind = config.activation

    def forward(self, x):
        if self.kind == "gelu":
            return F.gelu(x)  # x Phi(x), by erf
        if self.kind == "gelu_tanh":
            return F.gelu(x, approximate="tanh")  # GPT-2's approximation
        x = F.relu(x)
        return x**2 if self.kind == "relu_squared" else x  # So et al. 2021, Primer


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.eps = config.norm_eps

    def forward(self, x):
        return root_mean_square_normalise(x, self.eps) * self.weight


def make_norm(config: ModelConfig) -> nn.Module:
    if config.norm == "rms_norm":
        return RMSNorm(config)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


def root_mean_square_normalise(x, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def rotate(x):
    """Rotary position embedding (Su et al. 2021) of (B, T, D): rotate channels i and i + D/2."""
    T, D = x.shape[-2:]
    frequency = ROPE_BASE ** (-torch.arange(0, D, 2, device=x.device).float() / D)  # (D/2,)
    angle = torch.arange(T, device=x.device).float()[:, None] * frequency  # (T, D/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)  # (B, T, D/2) each
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Head(nn.Module):
    """One head of self-attention."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        head_size = config.n_embd // config.n_head
        self.key = nn.Linear(config.n_embd, head_size, bias=config.has_qkv_bias)
        self.query = nn.Linear(config.n_embd, head_size, bias=config.has_qkv_bias)
        self.value = nn.Linear(config.n_embd, head_size, bias=config.has_qkv_bias)
        self.register_buffer("tril", torch.tril(torch.ones(config.block_size, config.block_size)))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, documents=None):
        T = x.shape[1]
        k = self.key(x)  # (B, T, D)
        q = self.query(x)  # (B, T, D)
        if self.config.qk_norm:
            k, q = (root_mean_square_normalise(each, self.config.norm_eps) for each in (k, q))
        if self.config.position == "rope":
            k, q = rotate(k), rotate(q)
        # attention scores ("affinities")
        wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5  # (B, T, D) @ (B, D, T) -> (B, T, T)
        seen = self.tril[:T, :T]
        if self.config.window:  # hide tokens further back (Jiang et al. 2023, Mistral)
            seen = seen.triu(1 - self.config.window)
        if documents is not None:  # hide tokens of other documents
            seen = seen * (documents[:, :, None] == documents[:, None, :])  # (B, T, T)
        wei = wei.masked_fill(seen == 0, float("-inf"))  # (B, T, T)
        wei = F.softmax(wei, dim=-1)  # (B, T, T)
        wei = self.dropout(wei)
        # the weighted aggregation of the values
        v = self.value(x)  # (B, T, D)
        return wei @ v  # (B, T, T) @ (B, T, D) -> (B, T, D)


class MultiHeadAttention(nn.Module):
    """Several heads in parallel, with their outputs side by side, then mixed by a projection."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads = nn.ModuleList([Head(config) for _ in range(config.n_head)])
        group = config.n_head // config.head_counts[1]
        for h, head in enumerate(self.heads):  # a group shares one key (Ainslie et al. 2023)
            first = self.heads[h - h % group]
            head.key, head.value = first.key, first.value
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, documents=None):
        out = torch.cat([head(x, documents) for head in self.heads], dim=-1)  # (B, T, C)
        return self.dropout(self.proj(out))


class FeedForward(nn.Module):
    """A linear layer to four times the width, a non-linearity, and a linear layer back."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.feed_forward_width
        self.net = nn.Sequential(
            nn.Linear(config.n_embd, width, bias=config.bias),
            Activation(config),
            nn.Linear(width, config.n_embd, bias=config.bias),
            nn.Dropout(config.dropout),
        )

    def forward(self, x):
        return self.net(x)


class Block(nn.Module):
    """Transformer block: communication followed by computation."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.sa = MultiHeadAttention(config)
        self.ffwd = FeedForward(config)
        self.ln1 = make_norm(config)
        self.ln2 = make_norm(config)

    def forward(self, x, documents=None):
        x = x + self.sa(self.ln1(x), documents)
        x = x + self.ffwd(self.ln2(x))
        return x


class Blocks(nn.Sequential):
    """Blocks in turn, each with the same options."""

    def forward(self, x: Any, **options: Any) -> Any:  # type: ignore[override]
        for block in self:
            x = block(x, **options)
        return x


def number_documents(tokens, end_of_text):
    """The number of each token's document in its row (B, T); `end_of_text` is its last token."""
    is_end = tokens == end_of_text
    return is_end.cumsum(1) - is_end.long()


def initialise_projections(blocks: nn.Module, config: ModelConfig) -> None:
    """Draw the weights that lead back into the residual stream anew, as --projection-init asks."""
    for name, weight in blocks.named_parameters():
        if name.endswith(("proj.weight", "net.2.weight", "down.weight")):
            if config.projection_init == "scaled":  # GPT-2: one share per residual add
                nn.init.normal_(weight, mean=0.0, std=0.02 / (2 * config.n_layer) ** 0.5)
            elif config.projection_init == "zero":  # each block starts as the identity
                nn.init.zeros_(weight)


class GPT(nn.Module):
    """The lecture's GPTLanguageModel.

    tokens (B, T) int64, targets (B, T) int64 or None -> logits (B, T, V), loss () or None.
    Targets equal to -1 are ignored.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.token_embedding_table = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.position_embedding_table = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.embedding_dropout_p)
        self.blocks = Blocks(*[Block(config) for _ in range(config.n_layer)])
        self.ln_f = make_norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tied_head:
            self.lm_head.weight = self.token_embedding_table.weight
        self.initialise()

    def initialise(self) -> None:
        """Draw all weights from the global generator, in the lecture's order."""
        for module in self.modules():  # in the order of `apply`, but shared modules only once
            self._init_weights(module)
        initialise_projections(self.blocks, self.config)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, tokens, targets=None):
        B, T = tokens.shape
        x = self.token_embedding_table(tokens)  # (B, T, C)
        if self.config.position == "learned":
            x = x + self.position_embedding_table(torch.arange(T, device=tokens.device))  # (T, C)
        x = self.dropout(x)
        options = {}
        if self.config.document_mask:
            options["documents"] = number_documents(tokens, self.config.end_of_text)
        x = self.blocks(x, **options)  # (B, T, C)
        x = self.ln_f(x)  # (B, T, C)
        logits = self.lm_head(x)  # (B, T, V)
        if self.config.logit_softcap:
            logits = self.config.logit_softcap * torch.tanh(logits / self.config.logit_softcap)
        if targets is None:
            return logits, None
        loss = F.cross_entropy(
            logits.view(B * T, -1), targets.reshape(B * T), ignore_index=IGNORE_INDEX
        )
        return logits, loss
