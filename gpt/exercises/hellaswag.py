"""HellaSwag (Zellers et al. 2019): which of four endings continues the context?

    acc             the ending with the largest sum of log p(token | the tokens before it) is right
    acc_norm        the same with the mean over tokens, acc_norm of llm.c
    acc_norm_chars  the same with the sum by characters, acc_norm of lm-evaluation-harness

The last two do not favour short endings. The file is the published one, hellaswag_val.jsonl, each
line an object with `ctx`, `endings` and `label`. A space, which is not counted, separates context
and ending, as GPT-2's tokenizer expects. lm-evaluation-harness also rewrites the texts.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .. import UserError
from ..config.model import IGNORE_INDEX
from ..data.corpus import read_text
from ..data.tokenizers import Tokenizer
from ..models.build import Model
from ..training.precision import Precision

SCORES = ("acc", "acc_norm", "acc_norm_chars")


class Example(NamedTuple):
    """A context, its endings, and the index of the right one."""

    context: str
    endings: list[str]
    label: int


def examples(path: Path, limit: int = 0) -> list[Example]:
    """Read the examples of a file, at most `limit`; raises UserError for a malformed line."""
    found = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            example = Example(row["ctx"], row["endings"], int(row["label"]))
            texts = [example.context, *example.endings] if type(example.endings) is list else [""]
            valid = all(isinstance(text, str) and text for text in texts)
            valid = valid and 0 <= example.label < len(example.endings)
        except (ValueError, TypeError, KeyError, RecursionError):
            valid = False
        if not valid:
            raise UserError(
                f"{path}: line {number} is not a HellaSwag example, an object with ctx, endings "
                "and label"
            )
        found.append(example)
    if not found:
        raise UserError(f"{path} has no examples")
    return found[: limit or None]


def accuracy(
    model: Model, tokenizer: Tokenizer, tasks: list[Example], precision: Precision
) -> dict[str, float]:
    """The fractions of `tasks` whose best-scoring ending is the right one."""
    right = torch.zeros(len(SCORES))
    for context, endings, label in tqdm(tasks, unit="example", disable=None):
        scores = score(model, tokenizer, context, endings, precision)  # (endings, 3)
        right += scores.argmax(0).cpu() == label
    return dict(zip(SCORES, (right / len(tasks)).tolist(), strict=True))


@torch.no_grad()
def score(
    model: Model, tokenizer: Tokenizer, context: str, endings: list[str], precision: Precision
) -> Tensor:
    """The log-probability of each ending, by token and by character: (endings, 3).

    A row longer than the block size plus one token is cropped on the left.
    """
    before = torch.from_numpy(tokenizer.encode(context))
    lines, targets = [], []
    for ending in endings:
        after = torch.from_numpy(tokenizer.encode(" " + ending))
        counted = torch.cat((torch.full_like(before, IGNORE_INDEX), after))
        lines.append(torch.cat((before, after))[-model.config.block_size - 1 : -1])
        targets.append(counted[1:][-model.config.block_size :])
    pad = nn.utils.rnn.pad_sequence  # on the right, which no earlier token sees
    x = pad(lines, batch_first=True).to(precision.device)  # (endings, T)
    y = pad(targets, batch_first=True, padding_value=IGNORE_INDEX).to(precision.device)
    with precision.autocast():
        logits = model(x)[0][..., : tokenizer.vocab_size]  # (endings, T, V)
    losses = F.cross_entropy(logits.float().mT, y, ignore_index=IGNORE_INDEX, reduction="none")
    total = -losses.sum(1)
    characters = torch.tensor([len(ending) for ending in endings], device=total.device)
    return torch.stack((total, total / (y != IGNORE_INDEX).sum(1), total / characters), dim=1)
