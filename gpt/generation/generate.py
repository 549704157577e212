"""The generation loop: one new token for each row of text, over and over.

A packed GPT keeps its keys and values (`gpt/generation/kv_cache.py`). The reference and the stages
of the lecture compute the whole context for every token, as the lecture does. Both use the same
contexts: the whole text while it fits in the block, and then the part that starts at
`window_start`.

With `slide` = 1 that is the lecture's crop, the last block_size tokens. It moves with every token,
so that every token needs a new prefill. With `slide` = S it moves by S tokens at a time: there is
one prefill for S tokens, and a token sees between block_size - S + 1 and block_size earlier ones.
Either way the result is exactly the model's output for that context. By default S is a quarter of
block_size (docs/benchmarks.md has the effect on the loss).
"""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from ..models.build import Model
from ..models.packed import GPT
from ..training.cuda_graph import GraphedFunction
from .kv_cache import CachedGPT
from .sampling import Sampling

READ_EVERY = 8  # tokens between two reads from a GPU, each of which waits for it


def window_start(length: int, block_size: int, slide: int) -> int:
    """The position at which the context of a text of `length` tokens starts."""
    return -(-max(length - block_size, 0) // slide) * slide


@torch.no_grad()
def generate(
    model: Model,
    tokens: Tensor,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 (it is frozen)
    *,
    slide: int = 0,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the next token of each row, shape (B,), int64, on the CPU, `max_new_tokens` times.

    tokens: the prompts (B, T), int64, with at least one token.
    sampling: how a token is chosen; by default it is sampled from the model's distribution.
    slide: how many tokens the context moves by when it is full; 1 is the lecture's crop, and 0
        stands for a quarter of the block size.
    Raises ValueError if the prompts are empty or `slide` is not between 0 and the block size.
    """
    if not 0 <= slide <= model.config.block_size:
        raise ValueError(f"slide is {slide}; give 0 to the block size, {model.config.block_size}")
    slide = slide or max(1, model.config.block_size // 4)
    if tokens.shape[1] == 0:
        raise ValueError("the prompts are empty; give at least one token")
    if max_new_tokens < 1:
        return
    model.eval()
    arguments = tokens, max_new_tokens, sampling, slide, generator
    if isinstance(model, GPT):
        yield from _with_cache(model, *arguments)
    else:
        yield from _without_cache(model, *arguments)


def _without_cache(
    model: Model, tokens: Tensor, new: int, sampling: Sampling, slide: int, generator
) -> Iterator[Tensor]:
    """The lecture's way: compute the whole context for each token."""
    for _ in range(new):
        start = window_start(tokens.shape[1], model.config.block_size, slide)
        logits, _ = model(tokens[:, start:])  # (B, T, V)
        token = sampling.sample(logits[:, -1], generator)  # (B,)
        tokens = torch.cat((tokens, token[:, None]), dim=1)
        yield token.cpu()


def _with_cache(
    model: GPT, prompts: Tensor, new: int, sampling: Sampling, slide: int, generator
) -> Iterator[Tensor]:
    """Decode one token at a time, with a prefill whenever the context has moved."""
    device, (rows, length) = prompts.device, prompts.shape
    cached = CachedGPT(model, rows)
    tokens = torch.cat((prompts, prompts.new_zeros((rows, new))), dim=1)  # (B, T + new)
    seed = torch.randint(2**63 - 1, (), generator=generator, device=device)
    column = torch.full((1,), length - 1, device=device)  # of the latest tokens
    cached.counters += [column, seed]
    rule = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}

    def advance() -> None:
        token = tokens.index_select(1, column)[:, 0]  # (B,)
        logits = cached.decode_one_token(token)[:, : sampling.vocab_size]  # (B, V)
        token = model.ops.sample_token(logits, **rule, seed=seed)  # (B,)
        tokens.index_copy_(1, column, token[:, None])

    size = model.config.block_size - slide  # of a context that has just moved
    offsets = torch.arange(-size, 0, device=device)  # of its tokens from the latest one

    def move() -> None:
        cached.prefill(tokens.index_select(1, column + offsets))

    step, prefill, read_every = advance, move, 1
    if captures(device):
        step = GraphedFunction(advance, "decoding", warnings.warn, warm_up=1)
        prefill = GraphedFunction(move, "the prefill", warnings.warn, warm_up=1)
        read_every = READ_EVERY
    start, read = -1, length  # of the cached context; of what is not yet read
    for end in range(length, length + new):
        first = window_start(end, model.config.block_size, slide)
        if first != start:
            prefill() if end - 1 - first == size else cached.prefill(tokens[:, first : end - 1])
            start = first
        step()
        if (end - length) % read_every == 0 or end == length + new - 1:
            yield from tokens[:, read : end + 1].cpu().unbind(1)
            read = end + 1


def captures(device: torch.device) -> bool:
    """Whether the decode loop runs as a CUDA graph on this device."""
    return device.type == "cuda"
