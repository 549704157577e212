"""Arithmetic as it is written: operands (B,) -> tokens (B, N), answers with or without the work."""

from collections.abc import Callable

import torch

from gpt.data.tokenizers import CharTokenizer

CHARACTERS = "\n*+,-/0123456789=[]r"
TOKENIZER = CharTokenizer(CHARACTERS)
CODES = {character: code for code, character in enumerate(CHARACTERS)}
END = CODES["\n"]  # ends an answer and pads a row

# (a, b, operation, digits of the operands) -> the answers as tokens; a, b (B,) -> (B, N)
Write = Callable[[torch.Tensor, torch.Tensor, str, int], torch.Tensor]


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
        work += columns(
            [digit(a * ones, place) + digit(10 * a * tens, place) for place in range(4)]
        )
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
