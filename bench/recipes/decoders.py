"""Implementations of text generation, ours and peers', behind one function signature.

A decoder generates from tokens (B, 1): `generate(tokens, new, on_tokens)` appends `new` tokens to
each row, and calls `on_tokens(count)` whenever `count` more tokens per row are on the host.
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

import kernels
from bench import checkouts
from gpt import hardware
from gpt.config.model import ModelConfig
from gpt.config.presets import PRESETS
from gpt.generation.generate import READ_EVERY, generate
from gpt.generation.int8 import quantize
from gpt.models.build import build

VOCABULARY = {"lecture": 65, "gpt2": 50257}
SLIDE = 64  # tokens; the context then has at least 193 of its 256 tokens
LOW = "bfloat16"

Generate = Callable[[torch.Tensor, int, Callable[[int], None]], None]


class Decoder(NamedTuple):
    implementation: str  # a peer, or one of ours: reference, torch, triton
    dtype: str = "float32"  # of weights and cache
    slide: int = 1
    int8: bool = False

    def __str__(self):
        dtype = f"int8 and {self.dtype}" if self.int8 else self.dtype
        slide = [f"slide {self.slide}"] if self.slide > 1 else []
        return ", ".join([self.implementation, dtype, *slide])


class Peers(NamedTuple):
    """The files of the peers, as far as they are available."""

    lecture: Path | None = None  # its gpt.py
    nanogpt: Path | None = None  # a checkout


def decoders(model: str, device: torch.device) -> list[Decoder]:
    """The decoders of a model; the first is the baseline of the speedups.

    The lecture's model computes in fp32, like its file; GPT-2 in the dtype of nanoGPT's sample.py.
    """
    is_cuda = device.type == "cuda"
    low, fast = (LOW, "triton") if is_cuda else ("float32", "torch")
    if model == "gpt2":
        found = [Decoder("nanogpt", low), Decoder("torch", low)]
        return [*found, Decoder(fast, LOW), Decoder(fast, LOW, int8=True)]
    found = [Decoder("lecture"), Decoder("nanogpt", low), Decoder("reference")]
    found += [Decoder("torch", low, SLIDE), Decoder(fast, low), Decoder(fast, low, SLIDE)]
    found += [Decoder(fast, LOW, SLIDE), Decoder(fast, LOW, SLIDE, int8=True)]
    return list(dict.fromkeys(found))


def unavailable_reason(decoder: Decoder, device: torch.device, peers: Peers) -> str | None:
    name = decoder.implementation
    if name in Peers._fields and getattr(peers, name) is None:
        return f"its file is missing; give --{name}"
    return kernels.unavailable_reason(device) if name == "triton" else None


def sizes(model: str) -> ModelConfig:
    return replace(PRESETS[model].model, vocab_size=VOCABULARY[model])


def make_generate(
    config: ModelConfig, decoder: Decoder, device: torch.device, peers: Peers
) -> Generate:
    """A model of these sizes with random weights, as a function that generates."""
    dtype, name = getattr(torch, decoder.dtype), decoder.implementation
    torch.manual_seed(0)
    if name == "lecture":
        names = checkouts.lecture(peers.lecture, config.vocab_size, device)
        return in_pieces(names.GPTLanguageModel().to(device).eval())
    if name == "nanogpt":
        module = checkouts.nanogpt(peers.nanogpt)
        fields = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "bias")
        fields = {field: getattr(config, field) for field in fields}
        model = module.GPT(module.GPTConfig(**fields)).to(device).eval()
        return in_pieces(model, torch.autocast(device.type, dtype, dtype != torch.float32))
    model = build(config, None if name == "reference" else kernels.load(name, device))
    if decoder.int8:
        quantize(model)
    model.to(device, dtype)

    def ours(tokens, new, on_tokens):
        for _ in generate(model, tokens, new, slide=decoder.slide):
            on_tokens(1)

    return ours


def in_pieces(model, context=None) -> Generate:
    """A model whose `generate` returns all tokens at its end, called as often as ours are read."""

    @torch.no_grad()
    def run(tokens, new, on_tokens):
        made = 0
        while made < new:
            piece = READ_EVERY if made and tokens.device.type == "cuda" else 1
            piece = min(piece, new - made)
            with context or contextlib.nullcontext():
                tokens = model.generate(tokens, piece)
            hardware.synchronise(tokens.device)
            made += piece
            on_tokens(piece)

    return run
