"""Dates as people write them -> ISO 8601: data of pairs, for a model with an encoder.

    Thursday, 5 March 1987          =1987-03-05
    the 5th of March 1987           =1987-03-05

A row of a batch is the source, filled up with line breaks to SOURCE characters, then `=`, the
answer and a line break; the loss counts the answer. Of all days from 1900 to 2099 one in ten is
held out, however it is written: training never shows it.
"""

import functools
from datetime import date, timedelta

import numpy as np
import torch

from gpt import UserError
from gpt.config.model import IGNORE_INDEX, ModelConfig
from gpt.data.batches import random_integers, scramble
from gpt.data.tokenizers import CharTokenizer
from gpt.training.evaluation import answered

FIRST, DAYS = date(1900, 1, 1), 73_049  # to the end of 2099
MONTHS = ["January", "February", "March", "April", "May", "June"]
MONTHS += ["July", "August", "September", "October", "November", "December"]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
WAYS = (
    "{month} {day}, {year}",
    "{day} {month} {year}",
    "{short} {day} {year}",
    "the {day}{th} of {month} {year}",
    "{weekday}, {day} {month} {year}",
    "{weekday}, {month} {day}{th}, {year}",
)
SOURCE = 32  # the longest has 31 characters
ANSWER = len("1987-03-05\n")
BLOCK = SOURCE + ANSWER  # what the model is given of a row: all but the last character
HELD_OUT = 10  # one day in so many
PROBLEMS = 10_000  # in an evaluation
LETTERS = "".join([*MONTHS, *WEEKDAYS, "the of st nd rd"])
TOKENIZER = CharTokenizer("".join(sorted({*"\n =,-0123456789", *LETTERS})))
END = "\n"


class Dates:
    """What `gpt.data.batches.Data` offers of a text, of dates."""

    name, tokenizer = "dates", TOKENIZER

    def __init__(self, device: torch.device | str = "cpu"):
        self.source = self.device = torch.device(device)  # where batches are made
        self.lines = all_lines().to(device)  # (DAYS * len(WAYS), BLOCK + 1)
        day = torch.arange(len(self.lines), device=device) // len(WAYS)
        held_out = scramble(day, seed=0) % HELD_OUT == 0
        self.training = (~held_out).nonzero()[:, 0]  # rows of the table
        held_out = held_out.nonzero()[:, 0]
        self.held_out = held_out[scramble(held_out, seed=1).argsort()[:PROBLEMS]]

    def to(self, device: torch.device | str) -> "Dates":
        return Dates(device)

    def batch(self, seed: int, first_row, rows: int, block_size: int, split: str = "train"):
        """Rows `first_row` ... of the endless table that `seed` names: x and y, (rows, block)."""
        table = self.training if split == "train" else self.held_out
        chosen = random_integers(seed, first_row, rows, len(table), self.device)
        return self._rows(table[chosen], block_size)

    def validation(self, block_size: int):
        """Every held-out problem of an evaluation, as x and y (N, block_size)."""
        return self._rows(self.held_out, block_size)

    def check_model(self, config: ModelConfig) -> None:
        if config.block_size != BLOCK or config.source_size not in (0, SOURCE):
            raise UserError(
                f"dates need --block-size {BLOCK}, and --source-size {SOURCE} for an encoder or 0 "
                "for none"
            )

    def scores(self, model, block_size: int, precision) -> dict[str, float]:
        """The share of held-out dates that are read without a mistake."""
        rows = self.validation(block_size)
        right = answered(model, *rows, TOKENIZER.vocab_size, precision)
        return {"accuracy": right.double().mean().item()}

    def prompt(self, text: str) -> str:
        """The date that a person has typed, as the model knows it; or `UserError`."""
        text = text.strip().removesuffix("=").strip()
        unknown = sorted(set(text) - set(TOKENIZER.characters))
        if unknown or not 0 < len(text) <= SOURCE:
            raise UserError(
                f"the model of dates reads a date of at most {SOURCE} characters, such as "
                f"'5 March 1987', not {text!r}"
            )
        return text.ljust(SOURCE, END) + "="

    def answer(self, written: str) -> str:
        return written

    def _rows(self, rows, block_size: int):
        line = self.lines[rows].long()  # (rows, BLOCK + 1)
        y = line[:, 1:].clone()
        y[:, :SOURCE] = IGNORE_INDEX
        return line[:, :-1], y


@functools.cache
def all_lines() -> torch.Tensor:
    """Every day in every way, one below the other, as bytes."""
    lines = "".join(line for day in range(DAYS) for line in lines_of(FIRST + timedelta(day)))
    tokens = torch.from_numpy(TOKENIZER.encode(lines).astype(np.uint8))
    return tokens.view(DAYS * len(WAYS), BLOCK + 1)


def lines_of(day: date) -> list[str]:
    """Whole rows: the day in every way, and what it is in ISO 8601."""
    month, weekday = MONTHS[day.month - 1], WEEKDAYS[day.weekday()]
    parts = {"day": day.day, "th": suffix(day.day), "year": day.year, "weekday": weekday}
    parts |= {"month": month, "short": month[:3]}
    answer = f"={day.isoformat()}{END}"
    return [way.format(**parts).ljust(SOURCE, END) + answer for way in WAYS]


def suffix(day: int) -> str:
    """Of an ordinal number."""
    return "th" if day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
