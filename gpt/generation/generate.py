"""The generation loop: one new token for each row of text, over and over.

A packed GPT keeps its keys and values (`gpt/generation/kv_cache.py`). The reference, the stages of
the lecture and a model with an encoder compute the whole context for every token, as the lecture
does. Both use the same contexts: the whole text while it fits in the block, and then the part that
starts at `window_start`.

With `slide` = 1 that is the lecture's crop, the last block_size tokens. It moves with every token,
so that every token needs a new prefill. With `slide` = S it moves by S tokens at a time: there is
one prefill for S tokens, and a token sees between block_size - S + 1 and block_size earlier ones.
Either way the result is exactly the model's output for that context.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..models.build import Model
from ..models.packed import GPT
from ..training.cuda_graph import GraphedFunction
from .kv_cache import CachedGPT
from .sampling import Sampling

Prompts = Tensor | Sequence[Tensor]  # (B, T) int64, or B prompts of different lengths

READ_EVERY = 8  # tokens between two reads from a GPU, each of which waits for it


def window_start(length: int, block_size: int, slide: int) -> int:
    """The position at which the context of a text of `length` tokens starts."""
    return -(-max(length - block_size, 0) // slide) * slide


@torch.no_grad()
def generate(
    model: Model,
    tokens: Prompts,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 (it is frozen)
    *,
    slide: int = 1,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Iterator[Tensor]:
    """Yield the next token of each row, shape (B,), int64, on the CPU, `max_new_tokens` times.

    tokens: the prompts, each with at least one token.
    sampling: how a token is chosen; by default it is sampled from the model's distribution.
    slide: how many tokens the context moves by when it is full; 1 is the lecture's crop.
    use_cache: False computes the whole context for every token, whatever the model is.
    Raises ValueError if a prompt is empty or `slide` is not between 1 and the block size.
    """
    if not 1 <= slide <= model.config.block_size:
        raise ValueError(f"slide is {slide}; give 1 to the block size, {model.config.block_size}")
    if max_new_tokens < 1:
        return
    model.eval()
    text = Text(tokens, max_new_tokens, model.config.block_size, slide)
    if use_cache and isinstance(model, GPT):
        yield from _with_cache(model, text, sampling, generator)
    else:
        yield from _without_cache(model, text, sampling, generator)


class Text:
    """B rows of text on the device, (B, columns), aligned at the right end of their prompts."""

    def __init__(self, prompts: Prompts, max_new_tokens: int, block_size: int, slide: int):
        self.lengths = [len(prompt) for prompt in prompts]
        if 0 in self.lengths:
            raise ValueError("a prompt is empty; give at least one token")
        self.prompt, self.max_new_tokens = max(self.lengths), max_new_tokens  # columns
        self.block_size, self.slide = block_size, slide
        shape = (len(prompts), self.prompt + max_new_tokens)
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=prompts[0].device)
        for row, prompt in enumerate(prompts):
            self.tokens[row, self.prompt - len(prompt) : self.prompt] = prompt

    def starts(self, made: int) -> list[int]:
        """The column at which the context of each row starts once it has `made` new tokens."""
        return [
            self.prompt - length + window_start(length + made, self.block_size, self.slide)
            for length in self.lengths
        ]

    def contexts(self, rows: list[int], starts: list[int], end: int) -> tuple[Tensor, Tensor]:
        """The columns starts[row] to end - 1 of R rows, padded on the right, and their lengths.

        Returns (R, T) and (R,), both int64.
        """
        device = self.tokens.device
        start = torch.tensor([starts[row] for row in rows], device=device)[:, None]
        columns = start + torch.arange(end - min(starts[row] for row in rows), device=device)
        index = torch.tensor(rows, device=device)[:, None]
        return self.tokens[index, columns.clamp(max=end - 1)], end - start[:, 0]


def _without_cache(model: Model, text: Text, sampling: Sampling, generator) -> Iterator[Tensor]:
    """The lecture's way: compute the whole context for each token."""
    rows = list(range(len(text.tokens)))
    for made in range(text.max_new_tokens):
        end = text.prompt + made
        contexts, lengths = text.contexts(rows, text.starts(made), end)  # (B, T), (B,)
        logits, _ = model(contexts)  # (B, T, V)
        text.tokens[:, end] = sampling.sample(logits[rows, lengths - 1], generator)
        yield text.tokens[:, end].cpu()


def _with_cache(model: GPT, text: Text, sampling: Sampling, generator) -> Iterator[Tensor]:
    """Decode one token at a time, with a prefill whenever a context has moved."""
    device = text.tokens.device
    cached = CachedGPT(model, len(text.tokens))
    seed = torch.randint(2**63 - 1, (), generator=generator, device=device)
    column = torch.full((1,), text.prompt - 1, device=device)  # of the latest tokens
    rule = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}

    def advance() -> None:
        token = text.tokens.index_select(1, column)[:, 0]  # (B,)
        logits = cached.decode_one_token(token)[:, : sampling.vocab_size]  # (B, V)
        token = model.ops.sample_token(logits, **rule, seed=seed)  # (B,)
        column.add_(1)
        seed.add_(1)
        text.tokens.index_copy_(1, column, token[:, None])

    step: Callable[[], None] = advance
    read_every = 1
    if captures(device):
        step = GraphedFunction(advance, "decoding", warnings.warn, warm_up=1)
        read_every = READ_EVERY
    filled = [-1] * len(text.tokens)  # the column at which each cache starts
    read = 0
    for made in range(text.max_new_tokens):
        starts = text.starts(made)
        moved = [row for row, start in enumerate(starts) if filled[row] != start]
        if moved:
            cached.prefill(moved, *text.contexts(moved, starts, text.prompt + made - 1))
            filled = starts
        step()
        if made % read_every == 0 or made == text.max_new_tokens - 1:
            columns = slice(text.prompt + read, text.prompt + made + 1)
            yield from text.tokens[:, columns].cpu().unbind(1)
            read = made + 1


def captures(device: torch.device) -> bool:
    """Whether the decode loop runs as a CUDA graph on this device."""
    return device.type == "cuda"
