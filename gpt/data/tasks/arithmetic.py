"""Arithmetic as a kind of data (the lecture's exercise 2): problems made as they are needed.

    addition-3          123+045=8610        the sum's digits from the right, as carries go
    calculator          128+258=[16,08,03]0386          columns from the right: carry and digit
                        128-258=[-00,03,01]-130         the larger minus the smaller: borrow, digit
                        47*36=[42,28,21,14,02,09,06,01]1692     two partial products and their sum
                        97/12=[0,00,09,8,96,01]08r01    long division: digit, its product, the rest
    calculator-direct   47*36=1692          the same without the scratchpad

A row of a batch is one problem, its answer, and line breaks; the loss counts the answer alone, with
its scratchpad. Numbers have leading zeros, so that a digit's place says what it is worth. Of all
pairs of numbers one in ten is held out, in either order and of every operation: training never
shows it.
"""

import re

import torch
from torch.nn import functional as F

from gpt import UserError
from gpt.config.model import IGNORE_INDEX, ModelConfig
from gpt.data.batches import check_no_source, random_integers, scramble
from gpt.data.tasks.dates import Dates
from gpt.data.tokenizers import CharTokenizer
from gpt.training.evaluation import answered

TOKENIZER = CharTokenizer("\n*+,-/0123456789=[]r")
CODES = {character: code for code, character in enumerate(TOKENIZER.characters)}
END = CODES["\n"]  # of an answer, and what fills a row up
HELD_OUT = 10  # one pair in so many
CANDIDATES = 16  # for a pair; that all are held out happens to one problem in 10^16
PROBLEMS = 10_000  # held-out problems in an evaluation, shared by the operations


class Task:
    """The data of a task, with what `gpt.data.batches.Data` offers of a text."""

    tokenizer = TOKENIZER

    def __init__(self, name: str, digits: dict[str, int], write, device="cpu"):
        """`digits`: of the numbers of each operation; write(a, b, operation, digits) -> (B, N)."""
        self.name, self.digits, self.write = name, digits, write
        self.source = self.device = torch.device(device)  # where batches are made
        self.limit = 10 ** torch.tensor(list(digits.values()), device=device)  # (operations,)
        self.lowest = torch.tensor([sign == "/" for sign in digits], device=device).long()  # of b
        self.held_out = self._held_out_problems()  # operation, a, b: (N,) each

    def to(self, device: torch.device | str) -> "Task":
        return Task(self.name, self.digits, self.write, device)

    def batch(self, seed: int, first_row, rows: int, block_size: int, split: str = "train"):
        """Rows `first_row` ... of the endless table of problems that `seed` names: x and y.

        Either is (rows, block_size) int64; targets that are no part of an answer do not count.
        """
        drawn = random_integers(seed, first_row * 3, rows * 3, 1 << 62, self.device).view(rows, 3)
        if split != "train":
            chosen = drawn[:, 0] % len(self.held_out[0])
            return self._rows(*(column[chosen] for column in self.held_out), block_size)
        last = len(self.digits) - 1
        operation = (drawn[:, 0] % (last + 2)).clamp(max=last)  # twice as often: division is hard
        limit, lowest = self.limit[operation], self.lowest[operation]
        a, b = drawn[:, 1] % limit, drawn[:, 2, None] + torch.arange(CANDIDATES, device=self.device)
        b = lowest[:, None] + b % (limit - lowest)[:, None]  # (rows, CANDIDATES)
        first = (~is_held_out(a[:, None], b)).int().argmax(1, keepdim=True)
        return self._rows(operation, a, b.gather(1, first)[:, 0], block_size)

    def validation(self, block_size: int):
        """Every held-out problem of an evaluation, as x and y (N, block_size)."""
        return self._rows(*self.held_out, block_size)

    def check_model(self, config: ModelConfig) -> None:
        """Refuse a block that the longest line does not fit in."""
        check_no_source(config, self.name)
        problems = [column[:1] for column in self.held_out]
        longest = max(self._line(sign, *problems[1:]).shape[1] for sign in self.digits) - 1
        if longest > config.block_size:
            raise UserError(
                f"a problem of {self.name} and its answer have up to {longest} characters; give "
                f"--block-size {longest} or more"
            )

    def scores(self, model, block_size: int, precision) -> dict[str, float]:
        """The share of held-out problems answered without a mistake, in all and by operation.

        A scratchpad must be right to the last digit too.
        """
        rows = self.validation(block_size)
        right = answered(model, *rows, TOKENIZER.vocab_size, precision).double()
        operation = self.held_out[0]
        scores = {"accuracy": right.mean().item()}
        for number, sign in enumerate(self.digits):
            if len(self.digits) > 1:
                scores[f"accuracy {sign}"] = right[operation == number].mean().item()
        return scores

    def prompt(self, text: str) -> str:
        """The problem that a person has typed, as the model knows it; or `UserError`."""
        match = re.fullmatch(r"\s*([0-9]+)\s*([-+*/])\s*([0-9]+)\s*=?\s*", text)
        digits = self.digits.get(match[2], 0) if match else 0
        if not match or max(len(match[1]), len(match[3])) > digits:
            asked = ", ".join(f"{'9' * n}{sign}{'9' * n}=" for sign, n in self.digits.items())
            raise UserError(
                f"the model of {self.name} answers problems up to {asked}, not {text!r}"
            )
        if match[2] == "/" and not int(match[3]):
            raise UserError("nothing can be divided by 0")
        return f"{match[1]:0>{digits}}{match[2]}{match[3]:0>{digits}}="

    def answer(self, written: str) -> str:
        """What the model has written, as people write it."""
        if self.write is addition:
            written = written[::-1]
        result = re.sub(r"\[.*\]|\+", "", written).replace("r", " r ")
        return re.sub(r"\b0+(?=\d)", "", result)

    def _held_out_problems(self):
        """Problems of the evaluation, no two alike."""
        share, found = PROBLEMS // len(self.digits), []
        for operation, (limit, lowest) in enumerate(zip(self.limit, self.lowest, strict=True)):
            count = 3 * HELD_OUT * share  # of which one in HELD_OUT serves, if it is not a double
            drawn = random_integers(operation, 0, 2 * count, 1 << 62, self.device).view(2, count)
            pairs = torch.stack((drawn[0] % limit, lowest + drawn[1] % (limit - lowest)))
            pairs = pairs[:, is_held_out(*pairs)].unique(dim=1)
            order = scramble(torch.arange(pairs.shape[1], device=self.device), seed=1).argsort()
            pairs = pairs[:, order[:share]]
            found.append(torch.cat((torch.full_like(pairs[:1], operation), pairs)))
        return torch.cat(found, dim=1).unbind()

    def _line(self, sign: str, a, b):
        """Problems and their answers, (rows, places); the last place is END."""
        digits = self.digits[sign]
        problem = (number(a, digits), text(sign, a), number(b, digits), text("=", a))
        return torch.cat((*problem, self.write(a, b, sign, digits), text("\n", a)), dim=1)

    def _rows(self, operation, a, b, block_size: int):
        lines, counts, place = [], [], torch.arange(1, block_size + 1, device=self.device)
        for sign, digits in self.digits.items():
            line = self._line(sign, a, b)
            counts.append((2 * digits + 2 <= place) & (place < line.shape[1]))  # (block_size,)
            lines.append(F.pad(line, (0, block_size + 1 - line.shape[1]), value=END))
        row = torch.arange(len(a), device=self.device)
        line = torch.stack(lines)[operation, row]  # (rows, block_size + 1)
        counts = torch.stack(counts)[operation]  # (rows, block_size)
        return line[:, :-1], torch.where(counts, line[:, 1:], IGNORE_INDEX)


def is_held_out(a, b):
    """Whether training never shows the pair, in either order; a and b below 10^9."""
    pair = torch.minimum(a, b) * 10**9 + torch.maximum(a, b)
    return scramble(pair, seed=0) % HELD_OUT == 0


def text(characters: str, like):
    """The same characters in every row: like (B,) -> (B, N)."""
    return torch.stack([torch.full_like(like, CODES[c]) for c in characters], dim=1)


def digit(value, place: int):
    return value // 10**place % 10


def number(value, width: int):
    """The digits of each value, leading zeros included: (B,) -> (B, width)."""
    digits = [digit(value, place) for place in reversed(range(width))]
    return torch.stack(digits, dim=1) + CODES["0"]


def plus_or_minus(negative):
    return torch.where(negative, CODES["-"], CODES["+"])[:, None]


def addition(a, b, sign: str, digits: int):
    """The digits of the sum, the last one first."""
    return number(a + b, digits + 1).flip(1)


def result(a, b, sign: str, digits: int):
    """The answer of the calculator."""
    if sign == "+":
        return number(a + b, digits + 1)
    if sign == "-":
        return torch.cat((plus_or_minus(a < b), number((a - b).abs(), digits)), dim=1)
    if sign == "*":
        return number(a * b, 2 * digits)
    b = b.clamp(min=1)  # in rows of other operations
    return torch.cat((number(a // b, digits), text("r", a), number(a % b, digits)), dim=1)


def with_work(a, b, sign: str, digits: int):
    """The scratchpad, then the answer."""
    first = text("[", a)
    if sign == "+":
        work = columns(a, b, digits, 1)
    elif sign == "-":
        first = torch.cat((first, plus_or_minus(a < b)), dim=1)
        work = columns(torch.maximum(a, b), torch.minimum(a, b), digits, -1)
    elif sign == "*":
        work = product(a, digit(b, 0)) + product(a, digit(b, 1))
        work += columns(a * digit(b, 0), a * digit(b, 1) * 10, 4, 1)
    else:
        work = division(a, b.clamp(min=1))
    comma = text(",", a)
    rest = [piece for number in work for piece in (comma, number)][1:]
    return torch.cat((first, *rest, text("]", a), result(a, b, sign, digits)), dim=1)


def columns(a, b, width: int, sign: int) -> list:
    """a + b or a - b as on paper, from the right: of each column the carry and the digit."""
    carry, written = torch.zeros_like(a), []
    for place in range(width):
        total = digit(a, place) + sign * (digit(b, place) + carry)
        carry = sign * torch.div(total, 10, rounding_mode="floor")
        written.append(number(10 * carry + total % 10, 2))
    return written


def product(a, factor) -> list:
    """Two digits of a, from the right, times a digit, each with the carry of the one before."""
    carry, written = torch.zeros_like(a), []
    for place in range(2):
        total = digit(a, place) * factor + carry
        carry = total // 10
        written.append(number(total, 2))
    return written


def division(a, b) -> list:
    """Two digits of a, from the left: of each the quotient's digit, digit * b, and the rest."""
    rest, written = torch.zeros_like(a), []
    for place in (1, 0):
        rest = 10 * rest + digit(a, place)
        quotient = rest // b
        rest = rest - quotient * b
        written += [number(quotient, 1), number(quotient * b, 2), number(rest, 2)]
    return written


CALCULATOR = {"+": 3, "-": 3, "*": 2, "/": 2}  # digits of the numbers


def is_task(name: str) -> bool:
    return re.fullmatch(r"addition-[1-8]|calculator(-direct)?|dates", name) is not None


def open_task(name: str) -> Task | Dates:
    """The task of that name."""
    if name == "dates":
        return Dates()
    if name.startswith("addition"):
        return Task(name, {"+": int(name[-1])}, addition)
    return Task(name, CALCULATOR, result if name.endswith("direct") else with_work)
