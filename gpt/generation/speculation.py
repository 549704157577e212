"""Speculative decoding: guess some tokens, and let the model judge them all in one pass.

Decoding a token reads every weight, however little is computed with them. Given guesses
x_1 ... x_k, one pass gives p_1 ... p_k+1, the distributions of the next token at each place. A
guess x_i, sampled from q_i, is kept with probability min(1, p_i(x_i) / q_i(x_i)). The first one
that is rejected is replaced by a sample from max(p_i - q_i, 0), normalised, and those after it are
dropped; if all are kept, one more token is sampled from p_k+1. The result has the distribution p,
whatever q is (Leviathan, Kalman and Matias 2023; Chen et al. 2023); at temperature 0 it is the
greedy text.

Guesses come from a smaller model (`Draft`) or from the text itself (`Lookup`). They end where the
context moves: with slide = 1 there are none once the text is longer than the block.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.packed import GPT
from .generate import window_start
from .kv_cache import CachedGPT
from .sampling import Sampling

AHEAD = 4  # guesses for one pass; a fifth is rarely kept

# the guesses for what follows, and the distributions (k, V) that they were sampled from
Guesses = tuple[list[int], Tensor]
Guess = Callable[[list[int], int], Guesses]  # of a text, and of how many tokens at most


@torch.no_grad()
def speculate(
    model: GPT,
    prompt: Tensor,  # (T,)
    max_new_tokens: int,
    guess: Guess,
    sampling: Sampling,
    *,
    slide: int = 1,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the tokens of one row, shape (1,), int64, with the distribution of `generate`."""
    follower, text = Follower(model, slide), prompt.tolist()
    end = len(text) + max_new_tokens
    while len(text) < end:
        most = min(AHEAD, follower.room(len(text)), end - len(text) - 1)
        guesses, q = guess(text, most)
        p = sampling.probabilities(follower.logits(text + guesses, len(guesses) + 1))
        made = judge(guesses, q, p, generator)
        text += made
        yield from torch.tensor(made)[:, None]


def judge(
    guesses: list[int],
    q: Tensor,  # (k, V)
    p: Tensor,  # (k + 1, V)
    generator: torch.Generator | None = None,
) -> list[int]:
    """Return the guesses that are kept and the token that the model adds to them."""
    chances = torch.rand(len(guesses), generator=generator, device=p.device)
    for i, token in enumerate(guesses):
        if not chances[i] * q[i, token] < p[i, token]:
            left = (p[i] - q[i]).clamp(min=0)
            left = left if left.any() else p[i]  # p and q differ by rounding alone
            return [*guesses[:i], int(torch.multinomial(left, 1, generator=generator))]
    return [*guesses, int(torch.multinomial(p[-1], 1, generator=generator))]


class Follower:
    """A model with the cache of one text, whose last tokens can be taken back."""

    def __init__(self, model: GPT, slide: int):
        self.device = model.ln_f.weight.device
        self.block_size, self.slide = model.config.block_size, slide
        self.cached = CachedGPT(model.eval(), 1)
        self.start = 0  # of the context in the cache
        self.kept: list[int] = []  # its tokens

    def room(self, length: int) -> int:
        """How many tokens can follow a text of this length before its context moves."""
        return window_start(length, self.block_size, self.slide) + self.block_size - length

    def logits(self, text: list[int], last: int) -> Tensor:
        """The logits (last, V) of what follows each of the last tokens of the text."""
        start = window_start(len(text), self.block_size, self.slide)
        context = text[start:]
        before = len(context) - last
        pairs = zip(self.kept, context[:before], strict=False)
        most = min(len(self.kept), before)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), most)
        tokens = torch.tensor(context, device=self.device)
        if start != self.start or not same:
            same = before
            self.cached.prefill([0], tokens[None, :before], same)
        self.cached.position.fill_(same)
        self.start, self.kept = start, context
        return self.cached.extend(tokens[same:])[-last:]


class Draft:
    """Guesses from a smaller model with the same tokens, sampled by the same rule."""

    def __init__(self, model: GPT, sampling: Sampling, generator: torch.Generator | None = None):
        self.follower = Follower(model, slide=max(1, model.config.block_size // 4))
        self.sampling, self.generator = sampling, generator

    def __call__(self, text: list[int], most: int) -> Guesses:
        guesses: list[int] = []
        q: list[Tensor] = []  # (V,) each
        for _ in range(most):
            q.append(self.sampling.probabilities(self.follower.logits(text + guesses, 1))[0])
            guesses.append(int(torch.multinomial(q[-1], 1, generator=self.generator)))
        return guesses, torch.stack(q) if q else torch.empty(0)


class Lookup:
    """Guesses that repeat what followed the last tokens earlier in the text; for one text only."""

    def __init__(self, vocab_size: int, device: torch.device, lengths=(12, 6, 3)):
        self.vocab_size, self.device, self.lengths = vocab_size, device, lengths
        self.after: dict[tuple, int] = {}  # some tokens -> the position after their last occurrence
        self.read = 0

    def __call__(self, text: list[int], most: int) -> Guesses:
        for end in range(self.read, len(text)):
            for length in self.lengths:
                if length <= end:
                    self.after[tuple(text[end - length : end])] = end
        self.read = len(text)
        found = (self.after.get(tuple(text[-length:])) for length in self.lengths)
        place = next((place for place in found if place is not None), len(text))
        guesses = text[place : place + most]
        tokens = torch.tensor(guesses, dtype=torch.int64, device=self.device)
        return guesses, F.one_hot(tokens, self.vocab_size).float()
