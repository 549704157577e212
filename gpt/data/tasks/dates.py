"""Dates as people write them -> ISO 8601: pairs for a model with an encoder.

    Thursday, 5 March 1987          =1987-03-05
    the 5th of March 1987           =1987-03-05

A row of a batch is the source, padded with line breaks to SOURCE characters, then `=`, the answer
and a line break; only the answer counts in the loss. The days are those of 1900 to 2099; one in ten
is held out for validation in every format.
"""

import functools
from calendar import day_name, month_name
from datetime import date, timedelta

import numpy as np
import torch

from ... import UserError
from ...config.model import IGNORE_INDEX, ModelConfig
from ..batches import random_integers, scramble
from ..dataset import Batch, Row, Task
from ..tokenizers import CharTokenizer, Tokenizer

FIRST, DAYS = date(1900, 1, 1), 73_049  # to the end of 2099
FORMATS = (  # of a date, and of the ending of its day
    "{0:%B} {0.day}, {0.year}",
    "{0.day} {0:%B} {0.year}",
    "{0:%b} {0.day} {0.year}",
    "the {0.day}{1} of {0:%B} {0.year}",
    "{0:%A}, {0.day} {0:%B} {0.year}",
    "{0:%A}, {0:%B} {0.day}{1}, {0.year}",
)
SOURCE = 32  # the longest has 31 characters
ANSWER = len("1987-03-05\n")
BLOCK = SOURCE + ANSWER  # the model's context: a row without its last character
HELD_OUT = 10  # one day in ten
PROBLEMS = 10_000  # in the validation split
NAMES = "".join([*month_name, *day_name])
TOKENIZER = CharTokenizer.of(f"\n =,-0123456789the of st nd rd{NAMES}")
END = "\n"


class DatePairs(Task):
    """Dates and their ISO 8601 form."""

    name = "dates"
    tokenizer: Tokenizer = TOKENIZER

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = device
        self.lines = all_lines().to(device)  # (DAYS * len(FORMATS), BLOCK + 1) uint8
        day = torch.arange(len(self.lines), device=device) // len(FORMATS)
        is_held_out = scramble(day, seed=0) % HELD_OUT == 0
        self.training = (~is_held_out).nonzero()[:, 0]  # rows of `lines`
        held_out = is_held_out.nonzero()[:, 0]
        self.held_out = held_out[scramble(held_out, seed=1).argsort()[:PROBLEMS]]

    def to(self, device: torch.device | str) -> "DatePairs":
        return DatePairs(device)

    def batch(
        self, seed: int, first: Row, rows: int, block_size: int, split: str = "train"
    ) -> Batch:
        table = self.training if split == "train" else self.held_out
        chosen = random_integers(seed, first, rows, len(table), self.device)
        return self.rows(table[chosen], block_size)

    def check_model(self, config: ModelConfig) -> None:
        if config.block_size != BLOCK or config.source_size not in (0, SOURCE):
            raise UserError(
                f"dates need --block-size {BLOCK}, and --source-size {SOURCE} with an encoder or 0 "
                "without one"
            )

    def prompt(self, text: str) -> str:
        """A typed date, padded as a source, with `=`; or UserError."""
        text = text.strip().removesuffix("=").strip()
        unknown = sorted(set(text) - set(TOKENIZER.characters))
        if unknown or not 0 < len(text) <= SOURCE:
            raise UserError(
                f"{text!r} is not a date that the model can read; give at most {SOURCE} "
                "characters, such as '5 March 1987'"
            )
        return text.ljust(SOURCE, END) + "="

    def rows(self, problems: torch.Tensor, block_size: int) -> Batch:
        line = self.lines[problems].long()  # (rows, BLOCK + 1)
        y = line[:, 1:].clone()
        y[:, :SOURCE] = IGNORE_INDEX
        return line[:, :-1], y


@functools.cache
def all_lines() -> torch.Tensor:
    """Every day in every format, as tokens (DAYS * len(FORMATS), BLOCK + 1) uint8."""
    lines = "".join(line for day in range(DAYS) for line in lines_of(FIRST + timedelta(day)))
    tokens = torch.from_numpy(TOKENIZER.encode(lines).astype(np.uint8))
    return tokens.view(DAYS * len(FORMATS), BLOCK + 1)


def lines_of(day: date) -> list[str]:
    """Whole rows: the day in every format, padded, and its ISO 8601 form."""
    ending = "th" if 11 <= day.day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    answer = f"={day.isoformat()}{END}"
    return [form.format(day, ending).ljust(SOURCE, END) + answer for form in FORMATS]
