"""Guess some tokens, and let the model judge them all at once: the same text, for less reading.

To make a token all weights are read, whatever is computed with them. Of guesses x_1 ... x_k one
pass tells p_1 ... p_k+1, what the model would draw each next token from. A guess x_i, drawn from
q_i, is kept with probability min(1, p_i(x_i) / q_i(x_i)). The first that is not kept is replaced by
a draw from max(p_i - q_i, 0), normalised, and the rest is dropped; when all are kept, p_k+1 gives
one token more. What comes out is distributed as p, whatever q is (Leviathan, Kalman and Matias
2023; Chen et al. 2023); with temperature 0 it is the likeliest token each time.

Guesses come from a smaller model (`Draft`) or from the text itself (`Lookup`). They end where the
crop moves, since beyond it the context is another: with slide = 1 there are none past the block.

Does it pay? Where a pass over five tokens costs little more than one over a single token, and the
guesses are good. On a core of an AMD EPYC in fp32 it costs three to four times as much with the
lecture's model, so only text that repeats itself gains: `Lookup` found 3.8 tokens a pass in the
likeliest text of a quickstart's model, and 1.1 in text drawn at temperature 0.8. On a card, whose
`generate` is one graph for a token without a wait, this has a wait in every round: not measured.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn import functional as F

from gpt.generation.generate import distribution, window_start
from gpt.generation.kv_cache import CachedGPT
from gpt.models.packed import GPT

AHEAD = 4  # guesses for one pass; a fifth is seldom reached

Rule = Callable[[torch.Tensor], torch.Tensor]  # logits (R, V) -> probabilities (R, V)
# (text, most) -> up to so many guesses for what follows, and what they were drawn from, (k, V)
Guess = Callable[[list[int], int], tuple[list[int], torch.Tensor]]


@torch.no_grad()
def speculate(
    model: GPT,
    prompt: torch.Tensor,  # (T,)
    max_new_tokens: int,
    guess: Guess,
    rule: Rule,
    *,
    slide: int = 1,
    generator: torch.Generator | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the tokens of one row, (1,) int64, as `generate` does with the same rule."""
    follower, text = Follower(model, slide), prompt.tolist()
    end = len(text) + max_new_tokens
    while len(text) < end:
        most = min(AHEAD, follower.room(len(text)), end - len(text) - 1)
        guesses, q = guess(text, most)
        p = rule(follower.logits(text + guesses, len(guesses) + 1))
        made = judge(guesses, q, p, generator)
        text += made
        yield from torch.tensor(made)[:, None]


def judge(guesses: list[int], q, p, generator=None) -> list[int]:
    """The guesses that are kept, and one token more: q (k, V), p (k + 1, V)."""
    chances = torch.rand(len(guesses), generator=generator, device=p.device)
    for i, token in enumerate(guesses):
        if not chances[i] * q[i, token] < p[i, token]:
            left = (p[i] - q[i]).clamp(min=0)
            left = left if left.any() else p[i]  # rounding alone has told p from q
            return [*guesses[:i], int(torch.multinomial(left, 1, generator=generator))]
    return [*guesses, int(torch.multinomial(p[-1], 1, generator=generator))]


def rule_of(vocab_size: int, temperature: float, top_k: int, top_p: float) -> Rule:
    def rule(logits):
        return distribution(logits[:, :vocab_size].float(), temperature, top_k, top_p)

    return rule


class Follower:
    """A model and the cache of one text, of which the end may be taken back."""

    def __init__(self, model: GPT, slide: int):
        self.device = model.ln_f.weight.device
        self.begin = partial(window_start, block_size=model.config.block_size, slide=slide)
        self.block_size, self.cached = model.config.block_size, CachedGPT(model.eval(), 1)
        self.start, self.kept = 0, []  # of the crop in the cache, and its tokens

    def room(self, length: int) -> int:
        """How many tokens may follow a text of this length until its crop moves."""
        return self.begin(length) + self.block_size - length

    def logits(self, text: list[int], last: int) -> torch.Tensor:
        """What follows each of the last tokens of the text, (last, V); they see one crop."""
        start = self.begin(len(text))
        crop = text[start:]
        before = len(crop) - last
        both = zip(self.kept, crop[:before], strict=False)
        same = next((i for i, (a, b) in enumerate(both) if a != b), min(len(self.kept), before))
        tokens = torch.tensor(crop, device=self.device)
        if start != self.start or not same:
            same = before
            self.cached.fill([0], tokens[None, :before], same)
        self.cached.position.fill_(same)
        self.start, self.kept = start, crop
        return self.cached.extend(tokens[same:])[-last:]


class Draft:
    """Guesses of a smaller model with the same tokens, drawn by the same rule."""

    def __init__(self, model: GPT, rule: Rule, generator: torch.Generator | None = None):
        self.follower = Follower(model, slide=max(1, model.config.block_size // 4))
        self.rule, self.generator = rule, generator

    def __call__(self, text: list[int], most: int) -> tuple[list[int], torch.Tensor | None]:
        guesses, q = [], []
        for _ in range(most):
            q.append(self.rule(self.follower.logits(text + guesses, 1))[0])  # (V,)
            guesses.append(int(torch.multinomial(q[-1], 1, generator=self.generator)))
        return guesses, torch.stack(q) if q else None


class Lookup:
    """Guesses what came next where the text's last tokens stood before; for one text."""

    def __init__(self, vocab_size: int, device: torch.device, lengths=(12, 6, 3)):
        self.vocab_size, self.device, self.lengths = vocab_size, device, lengths
        self.after: dict[tuple, int] = {}  # some tokens -> where they last ended
        self.read = 0

    def __call__(self, text: list[int], most: int) -> tuple[list[int], torch.Tensor | None]:
        for end in range(self.read, len(text)):
            for length in self.lengths:
                if length <= end:
                    self.after[tuple(text[end - length : end])] = end
        self.read = len(text)
        found = (self.after.get(tuple(text[-length:])) for length in self.lengths)
        place = next((place for place in found if place is not None), len(text))
        guesses = text[place : place + most]
        return guesses, F.one_hot(
            torch.tensor(guesses, dtype=torch.int64, device=self.device), self.vocab_size
        ).float()
