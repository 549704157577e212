"""Generating text: tokens per second, ours and peers', each model and batch a part.

Set LECTURE to the path of the lecture's gpt.py and NANOGPT to that of a checkout to have their own
`generate` in the same run; Hugging Face's is there when transformers is installed.
"""

import os

import torch

from bench.compare import Failed, attempt
from bench.prove.stages import Outcome, failed, passed
from bench.recipes.decode import BATCHES, NEW, compared, copy_rate, measure, told
from bench.recipes.decoders import Peers, ways, why_not

SHARE = 0.25  # of a way's time for one run; there may be a second, and models are made and compiled
MOST_SECONDS = 10.0
PARTS = {f"{model}, batch {batch}": (model, batch) for model in NEW for batch in BATCHES}


def work(part: str, seconds: float) -> Outcome:
    model, batch = PARTS[part]
    device = torch.device("cuda", 0)
    peers = Peers(os.environ.get("LECTURE"), os.environ.get("NANOGPT"))
    copy, rows, lines = copy_rate(device), [], []
    todo = ways(model, device)
    for way in todo:
        reason = why_not(way, device, peers)
        if reason is None:
            each = min(MOST_SECONDS, SHARE * seconds / len(todo))
            row = attempt(measure, model, batch, way, device, each, peers, copy)
            if not isinstance(row, Failed):
                rows.append(row)
                continue
            reason = row.reason
        lines.append(f"{part}, {way}: {reason}")
    rows = compared(rows)
    lines = [told(row) for row in rows] + lines
    ours = [row for row in rows if row["who"].startswith("triton")]
    if not ours:
        return failed("nothing of ours was timed", lines=lines)
    return passed(told(max(ours, key=lambda row: row["tokens/s"])), figures=rows, lines=lines)


def parts() -> dict[str, float]:
    return dict.fromkeys(PARTS, 1)
