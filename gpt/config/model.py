"""What a model is: its sizes and switches."""

from dataclasses import dataclass
from typing import Literal

NORM_EPS = 1e-5  # PyTorch's LayerNorm default, GPT-2's too
ROPE_BASE = 10_000.0  # Su et al. 2021
IGNORE_INDEX = -1  # targets that do not count, as in nanoGPT and llm.c


@dataclass(frozen=True)
class ModelConfig:
    """What a model is; nothing here says how it is trained or which kernels compute it."""

    vocab_size: int = 0  # 0: as many as the tokenizer has; more is padding
    block_size: int = 256  # the longest context, in tokens
    n_layer: int = 6
    n_head: int = 6
    n_kv_head: int = 0  # heads of keys and values, each for a group of heads; 0: as many
    n_embd: int = 384
    dropout: float = 0.0  # on attention weights, after the projection, after the feed-forward
    embedding_dropout: float = 0.0  # on the sum of the embeddings: GPT-2 has it, the lecture not
    bias: bool = True  # in LayerNorm, the projection and the feed-forward
    qkv_bias: bool = False  # in key, query and value: GPT-2 has it, the lecture not
    head_bias: bool = True  # in lm_head: the lecture has it, GPT-2 not
    tied_head: bool = False  # lm_head shares the token embedding's weight
    activation: Literal["relu", "gelu", "gelu_tanh", "relu_squared", "swiglu"] = "relu"
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    position: Literal["learned", "rope"] = "learned"
    qk_norm: bool = False  # RMS-normalise each query and key
    window: int = 0  # a token sees itself and the window - 1 before it; 0: all
    source_size: int = 0  # of the context so many tokens go to an encoder; 0: there is none
    logit_softcap: float = 0.0  # logits bent into (-cap, cap), as in Gemma 2; 0 is off
    projection_init: Literal["normal", "scaled", "zero"] = "normal"  # back into the residual stream

    @property
    def head_counts(self) -> tuple[int, int, int]:
        """Heads of queries, of keys and of values."""
        kv_heads = self.n_kv_head or self.n_head
        return self.n_head, kv_heads, kv_heads

    @property
    def feed_forward_widths(self) -> tuple[int, int]:
        """How many channels go into the non-linearity and come out of it.

        swiglu takes two for one, so it has two thirds of the width, and about as many weights.
        """
        if self.activation == "swiglu":
            out = max(8, self.n_embd * 8 // 3 // 8 * 8)
            return 2 * out, out
        return 4 * self.n_embd, 4 * self.n_embd
