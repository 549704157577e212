"""Dates as people write them -> ISO 8601: pairs for a model with an encoder.

    Thursday, 5 March 1987          =1987-03-05
    the 5th of March 1987           =1987-03-05

A row of a batch is the source, padded with line breaks to SOURCE characters, then `=`, the answer
and a line break; only the answer counts in the loss. The days are those of 1900 to 2099; one in ten
is held out for validation in every format.
"""

import functools
from datetime import date, timedelta

import numpy as np
import torch

from ... import UserError
from ...config.model import IGNORE_INDEX, ModelConfig
from ..batches import random_integers, scramble
from ..dataset import Batch, Row, Task
from ..tokenizers import CharTokenizer, Tokenizer

FIRST, DAYS = date(1900, 1, 1), 73_049  # to the end of 2099
MONTHS = ["January", "February", "March", "April", "May", "June"]
MONTHS += ["July", "August", "September", "October", "November", "December"]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
FORMATS = (
    "{month} {day}, {year}",
    "{day} {month} {year}",
    "{short} {day} {year}",
    "the {day}{th} of {month} {year}",
    "{weekday}, {day} {month} {year}",
    "{weekday}, {month} {day}{th}, {year}",
)
SOURCE = 32  # the longest has 31 characters
ANSWER = len("1987-03-05\n")
BLOCK = SOURCE + ANSWER  # the model's context: a row without its last character
HELD_OUT = 10  # one day in ten
PROBLEMS = 10_000  # in the validation split
TOKENIZER = CharTokenizer.of("".join(["\n =,-0123456789", *MONTHS, *WEEKDAYS, "the of st nd rd"]))
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
        return self._rows(table[chosen])

    def validation_rows(self, block_size: int) -> int:
        return len(self.held_out)

    def validation(self, block_size: int, first: int = 0, rows: int | None = None) -> Batch:
        return self._rows(self.held_out[first:][:rows])

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

    def _rows(self, rows: torch.Tensor) -> Batch:
        line = self.lines[rows].long()  # (rows, BLOCK + 1)
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
    month, weekday = MONTHS[day.month - 1], WEEKDAYS[day.weekday()]
    suffix = "th" if 11 <= day.day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    parts = {"day": day.day, "th": suffix, "year": day.year, "weekday": weekday}
    parts |= {"month": month, "short": month[:3]}
    answer = f"={day.isoformat()}{END}"
    return [form.format(**parts).ljust(SOURCE, END) + answer for form in FORMATS]
