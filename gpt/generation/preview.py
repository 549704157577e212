"""Samples of a model during and after its training."""

from collections.abc import Iterator

import torch

from ..data.tokenizers import Tokenizer
from ..models.build import Model
from ..training.precision import Precision
from .generate import generate
from .sampling import Sampling
from .text_stream import TextStream, in_order

LENGTH = 100  # tokens of the sample at each evaluation, at most


def sample_text(
    model: Model, tokenizer: Tokenizer, length: int, seed: int, precision: Precision
) -> str:
    """Up to LENGTH tokens of text, generated without a cache; "" if `length` is 0.

    Decoding with a cache would capture a second CUDA graph beside that of the training step.
    """
    length = min(length, LENGTH)
    with precision.autocast():
        made = list(_tokens(model, tokenizer, length, seed, precision.device, cache=False))
    model.train()
    return tokenizer.decode([int(token) for token in made])


def print_sample(
    model: Model, tokenizer: Tokenizer, length: int, seed: int, device: torch.device
) -> None:
    """Print `length` tokens as they are generated."""
    tokens = _tokens(model, tokenizer, length, seed, device, cache=True)
    for _, text in in_order(tokens, [TextStream(tokenizer.stream())]):
        print(text, end="", flush=True)
    if length:
        print()


def _tokens(
    model: Model, tokenizer: Tokenizer, length: int, seed: int, device: torch.device, cache: bool
) -> Iterator[torch.Tensor]:
    """`length` tokens (1,) after token 0, as in the lecture.

    The seed is the same each time, so that only the model changes, and the run's generators are
    not used.
    """
    prompt = torch.zeros((1, 1), dtype=torch.long, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    sampling = Sampling(vocab_size=tokenizer.vocab_size)
    return generate(model, prompt, length, sampling, generator=generator, use_cache=cache)
