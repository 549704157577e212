"""A sample of the model after its training."""

import torch

from ..data.tokenizers import Tokenizer
from ..models.build import Model
from .generate import generate
from .sampling import Sampling
from .text_stream import TextStream, in_order


def print_sample(
    model: Model, tokenizer: Tokenizer, length: int, seed: int, device: torch.device
) -> None:
    """Print `length` tokens after token 0, as in the lecture, while they are generated.

    The run's generators are not used.
    """
    prompt = torch.zeros((1, 1), dtype=torch.long, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    sampling = Sampling(vocab_size=tokenizer.vocab_size)
    tokens = generate(model, prompt, length, sampling, generator=generator)
    for _, text in in_order(tokens, [TextStream(tokenizer.stream())]):
        print(text, end="", flush=True)
    if length:
        print()
