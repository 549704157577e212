"""Tokens from a model, one at a time: greedy, or drawn with temperature, top-k and top-p."""

from collections.abc import Iterator

import torch
import torch.nn as nn
from torch.nn import functional as F


@torch.no_grad()
def generate(
    model: nn.Module,
    tokens: torch.Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the next token of each row, (B,) int64, `max_new_tokens` times.

    tokens (B, T) int64, T >= 1. The context is cropped to the model's block size, as in the
    lecture. Temperature 0 takes the likeliest token.
    """
    model.eval()
    block_size = model.config.block_size
    for _ in range(max_new_tokens):
        logits, _ = model(tokens[:, -block_size:])
        token = draw(logits[:, -1, :].float(), temperature, top_k, top_p, generator)  # (B,)
        tokens = torch.cat((tokens[:, -block_size:], token[:, None]), dim=1)
        yield token


def draw(logits, temperature: float, top_k: int, top_p: float, generator=None) -> torch.Tensor:
    """One token of each row: logits (B, V) -> (B,)."""
    if temperature == 0.0:
        return logits.argmax(-1)
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[:, -1:]  # of those that stay
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    probabilities = F.softmax(logits, dim=-1)
    if top_p < 1.0:
        # the fewest tokens that together have at least top_p (Holtzman et al. 2020)
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # what the likelier ones have already
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def stream_text(tokens: Iterator[torch.Tensor], decode, stop: str = "") -> Iterator[str]:
    """Text as it is made, of batch row 0, ending before the first `stop`.

    `decode` is a tokenizer's `stream()`. Text that may be the beginning of `stop` is held back.
    """
    held = ""
    for token in tokens:
        held += decode(int(token[0]))
        if stop and stop in held:
            yield held[: held.index(stop)]
            return
        keep = _overlap(held, stop)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    yield held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
