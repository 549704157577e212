"""Arithmetic (the lecture's exercise 2): problems are generated as they are needed.

    addition-3          123+045=8610        the sum's digits from the right, in carry order
    calculator          128+258=[16,08,03]0386          columns from the right: carry and digit
                        128-258=[-00,03,01]-130         larger minus smaller: borrow and digit
                        47*36=[42,28,21,14,02,09,06,01]1692     two partial products, their sum
                        97/12=[0,00,09,8,96,01]08r01    long division: digit, product, remainder
    calculator-direct   47*36=1692          the same without the scratchpad

A row of a batch is a problem, its answer and line breaks; only the answer with its scratchpad
counts in the loss. Numbers have leading zeros, so that the position of a digit gives its weight.
One in ten pairs of numbers, in either order and for every operation, is held out for validation.
"""

import re
from collections.abc import Callable

import torch
from torch.nn import functional as F

from .. import UserError
from ..config.model import IGNORE_INDEX, ModelConfig
from .batches import random_integers, scramble
from .dataset import Batch, Dataset, Device, Row
from .tokenizers import CharTokenizer, Tokenizer

DIGITS = {"+": 3, "-": 3, "*": 2, "/": 2}  # of the calculator's operands
HELD_OUT = 10  # one pair in ten
CANDIDATES = 16  # draws of a pair; all of them are held out for one problem in 10^16
PROBLEMS = 10_000  # in the validation split, over all operations
CHARACTERS = "\n*+,-/0123456789=[]r"
TOKENIZER = CharTokenizer(CHARACTERS)
CODES = {character: code for code, character in enumerate(CHARACTERS)}
END = CODES["\n"]  # ends an answer and pads a row

# (a, b, operation, digits of the operands) -> the answers as tokens; a, b (B,) -> (B, N)
Write = Callable[[torch.Tensor, torch.Tensor, str, int], torch.Tensor]


class ArithmeticTask(Dataset):
    """Problems of one or more operations, whose answers can be graded."""

    tokenizer: Tokenizer = TOKENIZER

    def __init__(self, name: str, digits: dict[str, int], write: Write, device: Device = "cpu"):
        """digits: operation -> digits of its operands. write: computes the answers."""
        self.name, self.digits, self.write = name, digits, write
        self.device = device
        self.limit = 10 ** torch.tensor(list(digits.values()), device=device)  # (operations,)
        self.lowest = torch.tensor([sign == "/" for sign in digits], device=device).long()  # of b
        self.held_out = self._held_out_problems()

    def to(self, device: Device) -> "ArithmeticTask":
        return ArithmeticTask(self.name, self.digits, self.write, device)

    def batch(
        self, seed: int, first: Row, rows: int, block_size: int, split: str = "train"
    ) -> Batch:
        drawn = random_integers(seed, first * 3, rows * 3, 1 << 62, self.device).view(rows, 3)
        if split != "train":
            chosen = drawn[:, 0] % len(self.held_out[0])
            return self.rows(self.held_out[:, chosen], block_size)
        last = len(self.digits) - 1
        operation = (drawn[:, 0] % (last + 2)).clamp(max=last)  # the last, division, twice as often
        limit, lowest = self.limit[operation], self.lowest[operation]
        a, b = drawn[:, 1] % limit, drawn[:, 2, None] + torch.arange(CANDIDATES, device=self.device)
        b = lowest[:, None] + b % (limit - lowest)[:, None]  # (rows, CANDIDATES)
        trainable = (~is_held_out(a[:, None], b)).int().argmax(1, keepdim=True)  # the first one
        return self.rows(torch.stack((operation, a, b.gather(1, trainable)[:, 0])), block_size)

    def check_model(self, config: ModelConfig) -> None:
        _, a, b = self.held_out[:, :1]
        longest = max(self._line(sign, a, b).shape[1] for sign in self.digits) - 1
        if longest > config.block_size:
            problem = f"a problem of {self.name} with its answer has up to {longest} characters"
            raise UserError(f"{problem}; use --block-size {longest} or more")

    def validation_rows(self, block_size: int) -> int:
        return self.held_out.shape[1]

    def validation(self, block_size: int, first: int = 0, rows: int | None = None) -> Batch:
        return self.rows(self.held_out[:, first:][:, :rows], block_size)

    def accuracy(self, right: torch.Tensor) -> dict[str, float]:
        """The share of right (N,) bool, the answers to `validation`, in all and by operation."""
        shares = {"accuracy": right.double().mean().item()}
        if len(self.digits) > 1:
            for number, sign in enumerate(self.digits):
                solved = right[self.held_out[0] == number]
                shares[f"accuracy {sign}"] = solved.double().mean().item()
        return shares

    def prompt(self, text: str) -> str:
        """A typed problem with leading zeros, or UserError: 7 + 12 -> 007+012=."""
        match = re.fullmatch(r"\s*([0-9]+)\s*([-+*/])\s*([0-9]+)\s*=?\s*", text)
        digits = self.digits.get(match[2], 0) if match else 0
        if not match or max(len(match[1]), len(match[3])) > digits:
            largest = ", ".join(f"{'9' * n}{sign}{'9' * n}=" for sign, n in self.digits.items())
            problem = f"{text!r} is not a problem that the model of {self.name} can answer"
            raise UserError(f"{problem}; the largest are {largest}")
        if match[2] == "/" and not int(match[3]):
            raise UserError(f"{text.strip()!r} divides by 0; give another divisor")
        return f"{match[1]:0>{digits}}{match[2]}{match[3]:0>{digits}}="

    def answer(self, written: str) -> str:
        """The result without scratchpad, plus sign and leading zeros: [16,08,03]0386 -> 386."""
        if self.write is addition:
            written = written[::-1]
        result = re.sub(r"\[.*\]|\+", "", written).replace("r", " r ")
        return re.sub(r"\b0+(?=\d)", "", result)

    def _held_out_problems(self) -> torch.Tensor:
        """The distinct problems of the validation split: operation, a, b (3, N) int64."""
        share, found = PROBLEMS // len(self.digits), []
        for operation, (limit, lowest) in enumerate(zip(self.limit, self.lowest, strict=True)):
            count = 3 * HELD_OUT * share  # one in HELD_OUT is held out; duplicates are dropped
            drawn = random_integers(operation, 0, 2 * count, 1 << 62, self.device).view(2, count)
            pairs = torch.stack((drawn[0] % limit, lowest + drawn[1] % (limit - lowest)))
            pairs = pairs[:, is_held_out(*pairs)].unique(dim=1)
            order = scramble(torch.arange(pairs.shape[1], device=self.device), seed=1).argsort()
            pairs = pairs[:, order[:share]]
            found.append(torch.cat((torch.full_like(pairs[:1], operation), pairs)))
        return torch.cat(found, dim=1)

    def _line(self, sign: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Problems and their answers as tokens, a, b (B,) -> (B, N); the last token is END."""
        digits = self.digits[sign]
        problem = (number(a, digits), text(sign, a), number(b, digits), text("=", a))
        return torch.cat((*problem, self.write(a, b, sign, digits), text("\n", a)), dim=1)

    def rows(self, problems: torch.Tensor, block_size: int) -> Batch:
        operation, a, b = problems  # (3, N)
        lines, counted, place = [], [], torch.arange(1, block_size + 1, device=self.device)
        for sign, digits in self.digits.items():
            line = self._line(sign, a, b)
            counted.append((2 * digits + 2 <= place) & (place < line.shape[1]))  # (block_size,)
            lines.append(F.pad(line, (0, block_size + 1 - line.shape[1]), value=END))
        row = torch.arange(len(a), device=self.device)
        line = torch.stack(lines)[operation, row]  # (rows, block_size + 1)
        counts = torch.stack(counted)[operation]  # (rows, block_size)
        return line[:, :-1], torch.where(counts, line[:, 1:], IGNORE_INDEX)


def is_held_out(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Whether the pair is never trained on, in either order; a and b below 10^9."""
    pair = torch.minimum(a, b) * 10**9 + torch.maximum(a, b)
    return scramble(pair, seed=0) % HELD_OUT == 0


# ---- arithmetic as it is written ----------------------------------------------------------------


def text(characters: str, like: torch.Tensor) -> torch.Tensor:
    """The same characters in every row: like (B,) -> (B, N)."""
    return torch.stack([torch.full_like(like, CODES[c]) for c in characters], dim=1)


def digit(value: torch.Tensor, place: int) -> torch.Tensor:
    return value // 10**place % 10


def number(value: torch.Tensor, width: int) -> torch.Tensor:
    """The digits of each value with leading zeros: (B,) -> (B, width)."""
    digits = [digit(value, place) for place in reversed(range(width))]
    return torch.stack(digits, dim=1) + CODES["0"]


def plus_or_minus(is_negative: torch.Tensor) -> torch.Tensor:
    return torch.where(is_negative, CODES["-"], CODES["+"])[:, None]


def addition(a: torch.Tensor, b: torch.Tensor, sign: str, digits: int) -> torch.Tensor:
    """The digits of the sum, the last one first."""
    return number(a + b, digits + 1).flip(1)


def result(a: torch.Tensor, b: torch.Tensor, sign: str, digits: int) -> torch.Tensor:
    """The calculator's answer without the scratchpad."""
    if sign == "+":
        return number(a + b, digits + 1)
    if sign == "-":
        return torch.cat((plus_or_minus(a < b), number((a - b).abs(), digits)), dim=1)
    if sign == "*":
        return number(a * b, 2 * digits)
    b = b.clamp(min=1)  # rows of other operations may have b = 0
    return torch.cat((number(a // b, digits), text("r", a), number(a % b, digits)), dim=1)


def with_work(a: torch.Tensor, b: torch.Tensor, sign: str, digits: int) -> torch.Tensor:
    """The scratchpad and the answer."""
    first, places = text("[", a), range(digits)
    if sign == "+":
        work = columns([digit(a, place) + digit(b, place) for place in places])
    elif sign == "-":
        first = torch.cat((first, plus_or_minus(a < b)), dim=1)
        larger, smaller = torch.maximum(a, b), torch.minimum(a, b)
        work = columns([digit(larger, place) - digit(smaller, place) for place in places])
    elif sign == "*":
        ones, tens = digit(b, 0), digit(b, 1)
        work = columns([digit(a, place) * ones for place in places])
        work += columns([digit(a, place) * tens for place in places])
        work += columns([digit(a * ones, p) + digit(10 * a * tens, p) for p in range(4)])
    else:
        work = division(a, b.clamp(min=1))
    comma = text(",", a)
    rest = [piece for number in work for piece in (comma, number)][1:]
    return torch.cat((first, *rest, text("]", a), result(a, b, sign, digits)), dim=1)


def columns(values: list[torch.Tensor]) -> list[torch.Tensor]:
    """Columns on paper, from the right: the carry, or what is borrowed, and the digit of each."""
    carry, written = torch.zeros_like(values[0]), []
    for value in values:
        total = value + carry
        carry = torch.div(total, 10, rounding_mode="floor")
        written.append(number(10 * carry.abs() + total % 10, 2))
    return written


def division(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    """For each of the two digits of a, from the left: quotient, quotient * b, remainder."""
    rest, written = torch.zeros_like(a), []
    for place in (1, 0):
        rest = 10 * rest + digit(a, place)
        quotient = rest // b
        rest = rest - quotient * b
        written += [number(quotient, 1), number(quotient * b, 2), number(rest, 2)]
    return written


def is_task(name: str) -> bool:
    """Whether `--data` names a task: addition-1 to -8, calculator or calculator-direct."""
    return re.fullmatch(r"addition-[1-8]|calculator(-direct)?", name) is not None


def open_task(name: str) -> ArithmeticTask:
    """The task of that name, which `is_task` accepts."""
    if name.startswith("addition"):
        return ArithmeticTask(name, {"+": int(name[-1])}, addition)
    return ArithmeticTask(name, DIGITS, result if name.endswith("direct") else with_work)
