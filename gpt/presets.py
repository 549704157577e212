"""The architecture of a model as a frozen record, and the constants that every part shares."""

from dataclasses import dataclass
from typing import Literal

NORM_EPS = 1e-5  # PyTorch's LayerNorm default, GPT-2's too
ROPE_BASE = 10_000.0  # Su et al. 2021
IGNORE_INDEX = -1  # targets that do not count, as in nanoGPT and llm.c


@dataclass(frozen=True)
class ModelConfig:
    """What a model is; nothing here says how it is trained or which kernels compute it."""

    vocab_size: int = 65
    block_size: int = 256
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    dropout: float = 0.0  # on attention weights, after the projection, after the feed-forward
    embedding_dropout: float = 0.0  # on the sum of the embeddings: GPT-2 has it, the lecture not
    bias: bool = True  # in LayerNorm, the projection and the feed-forward
    qkv_bias: bool = False  # in key, query and value: GPT-2 has it, the lecture not
    head_bias: bool = True  # in lm_head: the lecture has it, GPT-2 not
    tied_head: bool = False  # lm_head shares the token embedding's weight
    activation: Literal["relu", "gelu", "gelu_tanh", "relu_squared"] = "relu"
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    position: Literal["learned", "rope"] = "learned"
    qk_norm: bool = False
    projection_init: Literal["normal", "scaled", "zero"] = "normal"
