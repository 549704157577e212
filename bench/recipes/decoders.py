"""Who generates text, ours and peers, as one kind of function: bench/recipes/decode.py times them.

A speaker takes tokens (B, 1), how many new ones each row is to have, and `tick`, which it calls
with the number of tokens that each row has got since, once these are on the host.
"""

import contextlib
import importlib.util
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
SLIDE = 64  # of ours where it need not be the lecture's crop: of 256 tokens it sees 193 at least
LOW = "bfloat16"

Speaker = Callable[[torch.Tensor, int, Callable[[int], None]], None]


class Way(NamedTuple):
    """Who generates, and how."""

    who: str  # a peer; of ours reference, torch or triton
    dtype: str = "float32"  # of weights and cache
    slide: int = 1
    int8: bool = False

    def __str__(self):
        dtype = f"int8 and {self.dtype}" if self.int8 else self.dtype
        slide = [f"slide {self.slide}"] if self.slide > 1 else []
        return ", ".join([self.who, dtype, *slide])


class Peers(NamedTuple):
    """Where the peers' files lie, as far as they do."""

    lecture: Path | None = None  # its gpt.py
    nanogpt: Path | None = None  # a checkout


def ways(model: str, device: torch.device) -> list[Way]:
    """Every way of a model on a device: peers first, of them the one the others are held against.

    The lecture's model computes in fp32, as its file does; GPT-2 as nanoGPT's sample.py does.
    """
    card = device.type == "cuda"
    low = LOW if card else "float32"
    fast = "triton" if card else "torch"
    if model == "gpt2":
        ours = [Way("torch", LOW)] if card else [Way("torch")]
        peers = [Way("nanogpt", low), Way("hugging face", low)]
        return [*peers, *ours, Way(fast, LOW), Way(fast, LOW, int8=True)]
    peers = [Way("lecture"), Way("nanogpt", low)]
    ours = [Way("reference"), Way("torch", low, SLIDE), Way(fast, low), Way(fast, low, SLIDE)]
    ways = [*peers, *ours, Way(fast, LOW, SLIDE), Way(fast, LOW, SLIDE, int8=True)]
    return list(dict.fromkeys(ways))


def why_not(way: Way, device: torch.device, peers: Peers) -> str | None:
    """Why a way cannot be measured here, or None where it can."""
    if way.who in Peers._fields and getattr(peers, way.who) is None:
        return f"no {way.who} was given"
    if way.who == "hugging face" and importlib.util.find_spec("transformers") is None:
        return "transformers is not installed"
    return kernels.unavailable_reason(device) if way.who == "triton" else None


def sizes(model: str) -> ModelConfig:
    return replace(PRESETS[model].model, vocab_size=VOCABULARY[model])


def speaker(config: ModelConfig, way: Way, device: torch.device, peers: Peers) -> Speaker:
    """A model of these sizes with random weights, ready to speak."""
    dtype = getattr(torch, way.dtype)
    torch.manual_seed(0)
    if way.who == "lecture":
        names = checkouts.lecture(peers.lecture, config.vocab_size, device)
        return _in_pieces(names.GPTLanguageModel().to(device).eval())
    if way.who == "nanogpt":
        module = checkouts.nanogpt(peers.nanogpt)
        fields = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "bias")
        fields = {name: getattr(config, name) for name in fields}
        model = module.GPT(module.GPTConfig(**fields)).to(device).eval()
        return _in_pieces(model, torch.autocast(device.type, dtype, dtype != torch.float32))
    if way.who == "hugging face":
        return _hugging_face(config, device, dtype)
    model = build(config, None if way.who == "reference" else kernels.load(way.who, device))
    if way.int8:
        quantize(model)
    model.to(device, dtype)

    def speak(tokens, new, tick):
        for _ in generate(model, tokens, new, slide=way.slide):
            tick(1)

    return speak


def _in_pieces(model, around=None) -> Speaker:
    """A model whose `generate` returns all tokens at last: asked as often as ours reads them."""

    @torch.no_grad()
    def speak(tokens, new, tick):
        made = 0
        while made < new:
            piece = READ_EVERY if made and tokens.device.type == "cuda" else 1
            piece = min(piece, new - made)
            with around or contextlib.nullcontext():
                tokens = model.generate(tokens, piece)
            hardware.synchronise(tokens.device)
            made += piece
            tick(piece)

    return speak


def _hugging_face(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Speaker:
    """GPT-2 with its static cache, and compiled where transformers does so by itself."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.block_size,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
    )
    model = GPT2LMHeadModel(model).to(device, dtype).eval()

    def speak(tokens, new, tick):
        model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            min_new_tokens=new,
            max_new_tokens=new,
            do_sample=True,
            top_k=0,
            cache_implementation="static",
            pad_token_id=0,
            streamer=_Ticks(tick),
        )

    return speak


class _Ticks:
    """What Hugging Face's `generate` hands its tokens to, the prompt first."""

    def __init__(self, tick: Callable[[int], None]):
        self.tick, self.is_prompt = tick, True

    def put(self, tokens) -> None:
        if not self.is_prompt:
            self.tick(1)
        self.is_prompt = False

    def end(self) -> None:
        pass
