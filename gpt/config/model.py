"""The architecture of a model: its sizes and switches."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from .. import UserError
from .base import Config, option

ROPE_BASE = 10_000.0  # Su et al. 2021
IGNORE_INDEX = -1  # the target of positions that the loss skips, as in nanoGPT and llm.c


@dataclass(frozen=True)
class ModelConfig(Config):
    """The architecture alone: not how the model is trained, nor which kernels compute it."""

    removed: ClassVar = {"source_size": 0}

    vocab_size: int = option(0, "number of tokens, padding included; 0: the tokenizer's")
    block_size: int = option(256, "context length in tokens", at_least=1)
    n_layer: int = option(6, "number of blocks", at_least=1, below=4097)
    n_head: int = option(6, "number of query heads", at_least=1)
    n_kv_head: int = option(0, "number of key and value heads; 0: the same as n_head")
    n_embd: int = option(384, "number of channels", at_least=1)
    dropout: float = option(0.0, "dropout of attention weights and sublayer outputs", below=1)
    embedding_dropout: float = option(
        0.0, "dropout of the embeddings; -1: that of --dropout, as in GPT-2", at_least=-1, below=1
    )
    bias: bool = option(True, "biases in LayerNorm and all linear layers but lm_head")
    qkv_bias: bool = option(False, "with --bias: in query, key and value too, as in GPT-2")
    head_bias: bool = option(True, "a bias in lm_head, as in the lecture")
    tied_head: bool = option(False, "lm_head shares the weight of the token embedding")
    activation: Literal["relu", "gelu", "gelu_tanh", "relu_squared"] = option(
        "relu", "non-linearity of the feed-forward"
    )
    n_inner: int = option(0, "number of channels of the feed-forward; 0: four times n_embd")
    norm: Literal["layer_norm", "rms_norm"] = option("layer_norm", "normalisation")
    norm_eps: float = option(1e-5, "added to the variance, or mean square, that a norm divides by")
    position: Literal["learned", "rope"] = option("learned", "how positions are encoded")
    qk_norm: bool = option(False, "RMS-normalise every query and key")
    window: int = option(0, "attend to this many tokens, the current one included; 0: to all")
    document_mask: bool = option(False, "attend only within a document, which end-of-text ends")
    end_of_text: int = option(-1, "token after a document; -1: the tokenizer's", at_least=-1)
    logit_softcap: float = option(0.0, "squash logits into (-cap, cap), as in Gemma 2; 0: off")
    projection_init: Literal["normal", "scaled", "zero"] = option(
        "normal", "initialisation of the projections into the residual stream"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if -1 < (p := self.embedding_dropout) < 0:
            raise UserError(f"--embedding-dropout is {p}; it must be -1, or at least 0")
        if self.n_embd % self.n_head:
            raise UserError(f"--n-embd {self.n_embd} is not divisible by --n-head {self.n_head}")
        if self.n_kv_head and self.n_head % self.n_kv_head:
            raise UserError(f"--n-kv-head {self.n_kv_head} does not divide --n-head {self.n_head}")
        if self.position == "rope" and self.n_embd // self.n_head % 2:
            raise UserError("--position rope needs an even head size, n_embd / n_head")

    @property
    def embedding_dropout_p(self) -> float:
        return self.dropout if self.embedding_dropout == -1 else self.embedding_dropout

    @property
    def has_qkv_bias(self) -> bool:
        return self.bias and self.qkv_bias

    @property
    def head_counts(self) -> tuple[int, int, int]:
        """The numbers of query, key and value heads."""
        kv_heads = self.n_kv_head or self.n_head
        return self.n_head, kv_heads, kv_heads

    @property
    def feed_forward_width(self) -> int:
        return self.n_inner or 4 * self.n_embd
