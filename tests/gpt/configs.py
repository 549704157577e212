"""Small models for the tests: a config for each switch, and a few combinations."""

from dataclasses import replace

import torch

import kernels
from gpt.config.model import ModelConfig
from gpt.models import packed
from gpt.models.layouts import packed_from_lecture
from tests.operands import DEVICE

LECTURE = ModelConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=32)

ACTIVATIONS = ("gelu", "gelu_tanh", "relu_squared")
GPT2 = {"qkv_bias": True, "head_bias": False, "tied_head": True, "activation": "gelu_tanh"}
MODERN = {"norm": "rms_norm", "position": "rope", "qk_norm": True, "activation": "relu_squared"}
MODERN |= {"bias": False, "head_bias": False, "tied_head": True, "projection_init": "zero"}

CONFIGS = {
    "lecture": LECTURE,
    **{name: replace(LECTURE, activation=name) for name in ACTIVATIONS},
    "softcap": replace(LECTURE, logit_softcap=3.0),
    "no bias": replace(LECTURE, bias=False),
    "qkv bias": replace(LECTURE, qkv_bias=True, n_inner=40, norm_eps=0.01),
    "no head bias": replace(LECTURE, head_bias=False),
    "tied head": replace(LECTURE, tied_head=True),
    "rms_norm": replace(LECTURE, norm="rms_norm"),
    "rope": replace(LECTURE, position="rope"),
    "qk_norm": replace(LECTURE, qk_norm=True),
    "grouped": replace(LECTURE, n_head=4, n_kv_head=2, qkv_bias=True),
    "window": replace(LECTURE, window=3),
    "documents": replace(LECTURE, document_mask=True, end_of_text=3, position="rope", window=3),
    "one head": replace(LECTURE, n_head=1, n_layer=1),
    "grouped window": replace(
        LECTURE, n_head=4, n_kv_head=1, window=2, position="rope", qk_norm=True, bias=False
    ),
    "gpt2": replace(LECTURE, **GPT2, projection_init="scaled"),
    "modern": replace(LECTURE, **MODERN),
}


@torch.no_grad()
def randomise(model, seed=0):
    """Draw weights, biases included, so large that every term affects the logits."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


def packed_from(model, ops, dtype=torch.float32):
    """The packed GPT with the weights of a reference, on `DEVICE`; ops: a table or its name."""
    ops = kernels.load(ops, DEVICE) if isinstance(ops, str) else ops
    packed_model = packed.GPT(model.config, ops)
    packed_model.load_state_dict(packed_from_lecture(model.state_dict(), model.config))
    return packed_model.to(DEVICE, dtype)


def draw_tokens(B, T, seed=0, vocab_size=LECTURE.vocab_size):
    """Random tokens (B, T) int64."""
    return torch.randint(vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))
