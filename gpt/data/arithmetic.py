"""Addition (the lecture's exercise 2): problems are generated as they are needed.

    addition-3          123+045=8610        the sum's digits from the right, in carry order

A row of a batch is a problem, its answer and line breaks; only the answer counts in the loss.
Numbers have leading zeros, so that the position of a digit gives its weight. One in ten pairs of
numbers, in either order, is held out for validation.
"""

import re

import torch
from torch.nn import functional as F

from .. import UserError
from ..config.model import IGNORE_INDEX, ModelConfig
from .batches import random_integers, scramble
from .dataset import Batch, Dataset, Device, Row
from .tokenizers import CharTokenizer, Tokenizer

HELD_OUT = 10  # one pair in ten
CANDIDATES = 16  # for b; all of them are held out for one problem in 10^16
PROBLEMS = 10_000  # in the validation split
CHARACTERS = "\n*+,-/0123456789=[]r"  # also some that no sum has: saved runs have these tokens
END, ZERO, PLUS, EQUALS = (CHARACTERS.index(character) for character in "\n0+=")


class Addition(Dataset):
    """Sums of two numbers with as many digits as the last character of the name says."""

    tokenizer: Tokenizer = CharTokenizer(CHARACTERS)

    def __init__(self, name: str, device: Device = "cpu"):
        self.name, self.device, self.digits = name, device, int(name[-1])
        self.held_out = self._held_out_problems()  # a and b (2, N)

    def to(self, device: Device) -> "Addition":
        return Addition(self.name, device)

    def batch(
        self, seed: int, first: Row, rows: int, block_size: int, split: str = "train"
    ) -> Batch:
        drawn = random_integers(seed, first * 3, rows * 3, 1 << 62, self.device)
        choice, a, b = drawn.view(rows, 3).unbind(1)
        if split != "train":
            return self._rows(self.held_out[:, choice % self.held_out.shape[1]], block_size)
        limit = 10**self.digits
        a, b = a % limit, (b[:, None] + torch.arange(CANDIDATES, device=self.device)) % limit
        trainable = (~is_held_out(a[:, None], b)).int().argmax(1, keepdim=True)  # the first one
        return self._rows(torch.stack((a, b.gather(1, trainable)[:, 0])), block_size)

    def check_model(self, config: ModelConfig) -> None:
        longest = 3 * self.digits + 3
        if longest > config.block_size:
            problem = f"a problem of {self.name} with its answer has {longest} characters"
            raise UserError(f"{problem}; use --block-size {longest} or more")

    def validation_rows(self, block_size: int) -> int:
        return self.held_out.shape[1]

    def validation(self, block_size: int, first: int = 0, rows: int | None = None) -> Batch:
        return self._rows(self.held_out[:, first:][:, :rows], block_size)

    def prompt(self, text: str) -> str:
        """A typed problem with leading zeros, or UserError: 7 + 12 -> 007+012=."""
        match = re.fullmatch(r"\s*([0-9]+)\s*\+\s*([0-9]+)\s*=?\s*", text)
        if not match or max(map(len, match.groups())) > self.digits:
            largest = "9" * self.digits
            problem = f"{text!r} is not a problem that the model of {self.name} can answer"
            raise UserError(f"{problem}; the largest is {largest}+{largest}=")
        return f"{match[1]:0>{self.digits}}+{match[2]:0>{self.digits}}="

    def answer(self, written: str) -> str:
        """The sum as people write it: 8610 -> 168."""
        return re.sub(r"^0+(?=\d)", "", written[::-1])

    def _held_out_problems(self) -> torch.Tensor:
        """The distinct problems of the validation split: a and b (2, N) int64."""
        count = 3 * HELD_OUT * PROBLEMS  # one in HELD_OUT is held out; duplicates are dropped
        drawn = random_integers(0, 0, 2 * count, 1 << 62, self.device)
        pairs = drawn.view(2, count) % 10**self.digits
        pairs = pairs[:, is_held_out(*pairs)].unique(dim=1)
        order = scramble(torch.arange(pairs.shape[1], device=self.device), seed=1).argsort()
        return pairs[:, order[:PROBLEMS]]

    def _rows(self, problems: torch.Tensor, block_size: int) -> Batch:
        """The problems, a and b (2, N), with their answers."""
        (a, b), digits = problems, self.digits
        left = F.pad(number(a, digits), (0, 1), value=PLUS)
        right = F.pad(number(b, digits), (0, 1), value=EQUALS)
        line = torch.cat((left, right, number(a + b, digits + 1).flip(1)), dim=1)
        line = F.pad(line, (0, block_size + 1 - line.shape[1]), value=END)  # (N, block_size + 1)
        place = torch.arange(1, block_size + 1, device=self.device)
        counts = (2 * digits + 2 <= place) & (place <= 3 * digits + 3)  # the sum and one END
        return line[:, :-1], torch.where(counts, line[:, 1:], IGNORE_INDEX)


def is_held_out(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Whether the pair is never trained on, in either order; a and b below 10^9."""
    pair = torch.minimum(a, b) * 10**9 + torch.maximum(a, b)
    return scramble(pair, seed=0) % HELD_OUT == 0


def number(value: torch.Tensor, width: int) -> torch.Tensor:
    """The digits of each value with leading zeros, as tokens: (N,) -> (N, width)."""
    digits = [value // 10**place % 10 for place in reversed(range(width))]
    return torch.stack(digits, dim=1) + ZERO


def is_task(name: str) -> bool:
    """Whether `--data` names a task: addition-1 to addition-8."""
    return re.fullmatch(r"addition-[1-8]", name) is not None
