"""Tokens from a model, one at a time: greedy, or drawn with temperature, top-k and top-p.

The fast model keeps keys and values (`gpt/generation/kv_cache.py`); the reference, the lecture's road and a model
with an encoder compute the whole context for each token, as the lecture does. Both see the same
contexts: all tokens so far, and once these are more than the block size, the crop that
`window_start` cuts.

With `slide` = 1 that is the lecture's crop, the last block_size tokens. It moves with every token,
so every token costs a whole context, as in the lecture. With `slide` = S the crop moves by S tokens
at a time: a whole context is computed once in S tokens, and a token sees between block_size - S + 1
and block_size earlier ones. Either is exactly what the model says of that context.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn as nn
from torch.nn import functional as F

from gpt.generation.kv_cache import CachedGPT
from gpt.models.packed import GPT
from gpt.training.cuda_graph import CaptureError, capture, on_side_stream

READ_EVERY = 8  # tokens: a CUDA card is asked for its tokens, and waited for, this seldom


def window_start(length: int, block_size: int, slide: int) -> int:
    """Where the context of a text of `length` tokens begins."""
    return -(-max(length - block_size, 0) // slide) * slide


@torch.no_grad()
def generate(
    model: nn.Module,
    tokens: torch.Tensor | Sequence[torch.Tensor],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    slide: int = 1,
    vocab_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the next token of each row, (B,) int64, `max_new_tokens` times.

    tokens (B, T) int64, or B prompts (T_b,) of different lengths, of at least one token each.
    Temperature 0 takes the likeliest token. Of all tokens those count that have fewer than `top_k`
    likelier ones (0: any number), which together have less than `top_p` of the probability, and
    that are below `vocab_size`, where the model's vocabulary is padded.
    """
    if not 1 <= slide <= model.config.block_size:
        raise ValueError(f"slide is {slide}; give 1 to the block size, {model.config.block_size}")
    if max_new_tokens < 1:
        return
    model.eval()
    text = Text(tokens, max_new_tokens, model.config.block_size, slide)
    rule = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    if isinstance(model, GPT) and not model.config.source_size:
        yield from _remembering(model, text, vocab_size, rule, generator)
    else:
        yield from _recomputing(model, text, vocab_size, rule, generator)


class Text:
    """B rows of text on the device, (B, columns): whatever their lengths, they end together."""

    def __init__(self, prompts, new: int, block_size: int, slide: int):
        self.lengths = [len(prompt) for prompt in prompts]
        if 0 in self.lengths:
            raise ValueError("a prompt is empty; give at least one token to begin with")
        self.prompt, self.new = max(self.lengths), new  # columns
        self.block_size, self.slide = block_size, slide
        shape = (len(prompts), self.prompt + new)
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=prompts[0].device)
        for row, prompt in enumerate(prompts):
            self.tokens[row, self.prompt - len(prompt) : self.prompt] = prompt

    def begins(self, made: int) -> list[int]:
        """The column where each row's context begins when `made` tokens are new."""
        return [
            self.prompt - length + window_start(length + made, self.block_size, self.slide)
            for length in self.lengths
        ]

    def cut(self, rows: list[int], begins: list[int], end: int):
        """Contexts (R, T) of `rows`, filled up on the right, and their lengths (R,).

        That of a row is made of its columns begins[row] to end - 1.
        """
        device = self.tokens.device
        begin = torch.tensor([begins[row] for row in rows], device=device)[:, None]
        columns = begin + torch.arange(end - min(begins[row] for row in rows), device=device)
        rows = torch.tensor(rows, device=device)[:, None]
        return self.tokens[rows, columns.clamp(max=end - 1)], end - begin[:, 0]


def _recomputing(model, text: Text, vocab_size, rule, generator) -> Iterator[torch.Tensor]:
    """The lecture's way: the whole context for each token."""
    rows = list(range(len(text.tokens)))
    for made in range(text.new):
        end = text.prompt + made
        contexts, lengths = text.cut(rows, text.begins(made), end)  # (B, T), (B,)
        logits, _ = model(contexts)  # (B, T, V)
        logits = logits[rows, lengths - 1, :vocab_size]  # (B, V)
        text.tokens[:, end] = draw(logits.float(), **rule, generator=generator)
        yield text.tokens[:, end].cpu()


def _remembering(model: GPT, text: Text, vocab_size, rule, generator) -> Iterator[torch.Tensor]:
    """With a cache: one token for each token, and a context anew only where it has moved."""
    device = text.tokens.device
    cached = CachedGPT(model, len(text.tokens))
    seed = torch.randint(2**63 - 1, (), generator=generator, device=device)
    column = torch.full((1,), text.prompt - 1, device=device)  # of the latest tokens

    def advance():
        token = text.tokens.index_select(1, column)[:, 0]  # (B,)
        logits = cached.step(token)[:, :vocab_size]  # (B, V)
        token = model.ops.sample_token(logits, **rule, seed=seed)  # (B,)
        column.add_(1)
        seed.add_(1)
        text.tokens.index_copy_(1, column, token[:, None])

    if captures(device):
        advance = captured(advance)
        column.sub_(1)  # it was called once
        seed.sub_(1)
    read_every = READ_EVERY if captures(device) else 1
    filled: list[int | None] = [None] * len(text.tokens)  # the column where each cache begins
    read = 0
    for made in range(text.new):
        begins = text.begins(made)
        moved = [row for row, begin in enumerate(begins) if filled[row] != begin]
        if moved:
            cached.fill(moved, *text.cut(moved, begins, text.prompt + made - 1))
            filled = begins
        advance()
        if made % read_every == 0 or made == text.new - 1:
            columns = slice(text.prompt + read, text.prompt + made + 1)
            yield from text.tokens[:, columns].cpu().unbind(1)
            read = made + 1


def captures(device: torch.device) -> bool:
    """Whether tokens are made by a CUDA graph there."""
    return device.type == "cuda"


def captured(advance: Callable[[], None]) -> Callable[[], None]:
    """`advance` as one CUDA graph, or as it is where it cannot be captured.

    It is called once on the way, so that every kernel is loaded and every buffer allocated.
    """
    on_side_stream(advance)
    try:
        graph, _ = capture(advance)
    except CaptureError as error:
        warnings.warn(f"decoding cannot be captured as a CUDA graph: {error}", stacklevel=2)
        return advance
    return graph.replay


def draw(logits, temperature: float, top_k: int, top_p: float, generator=None) -> torch.Tensor:
    """One token of each row: logits (B, V) -> (B,)."""
    if temperature == 0.0:
        return logits.argmax(-1)
    kept = distribution(logits, temperature, top_k, top_p)
    return torch.multinomial(kept, 1, generator=generator)[:, 0]


def distribution(logits, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """The probabilities (B, V) that a token is drawn with."""
    if temperature == 0.0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    logits = logits / temperature
    probabilities = F.softmax(logits, dim=-1)
    kept = torch.ones_like(logits, dtype=torch.bool)
    if 0 < top_k < logits.shape[-1]:
        kept &= logits >= logits.topk(top_k, dim=-1).values[:, -1:]
    if top_p < 1.0:
        # the fewest tokens that together have at least top_p (Holtzman et al. 2020)
        ordered, order = probabilities.sort(dim=-1, descending=True)
        likelier = ordered.cumsum(-1) - ordered
        kept &= torch.empty_like(kept).scatter_(-1, order, likelier < top_p)
    probabilities = probabilities * kept
    return probabilities / probabilities.sum(-1, keepdim=True)


class TextStream:
    """The text of one row as its tokens come, which ends before the first `stop`.

    Called with a token, it returns the text that is now certain; what may be the beginning of
    `stop` is held back. `decode` is a tokenizer's `stream()`.
    """

    def __init__(self, decode: Callable[[int], str], stop: str = ""):
        self.decode, self.stop = decode, stop
        self.held, self.stopped, self.tokens = "", False, 0

    def __call__(self, token: int) -> str:
        self.tokens += 1
        self.held += self.decode(token)
        if self.stop and self.stop in self.held:
            self.stopped = True
            self.held = self.held[: self.held.index(self.stop)]
            return self.rest()
        certain = len(self.held) - _overlap(self.held, self.stop)
        text, self.held = self.held[:certain], self.held[certain:]
        return text

    def rest(self) -> str:
        """What was held back, when no token follows."""
        text, self.held = self.held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


def stream_text(tokens: Iterator[torch.Tensor], decode: Callable[[int], str]) -> Iterator[str]:
    """The text of the first row as it is made."""
    stream = TextStream(decode)
    for token in tokens:
        yield stream(int(token[0]))
