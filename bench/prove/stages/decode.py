"""Generation speed in tokens per second, ours and peers'; each model and batch is a part.

Set LECTURE to the path of the lecture's gpt.py and NANOGPT to that of a checkout to time their
`generate` in the same run.
"""

import os

import torch

from bench.prove.stage import Outcome, failed, passed
from bench.recipes.decode import BATCHES, NEW, Peers, compare, decoders, describe

SHARE = 0.25  # of a decoder's time for one run; it may run twice, and is made and compiled before
MAX_SECONDS = 10.0
PARTS = {f"{model}, batch {batch}": (model, batch) for model in NEW for batch in BATCHES}


def work(part: str, seconds: float) -> Outcome:
    model, batch = PARTS[part]
    device = torch.device("cuda", 0)
    peers = Peers(os.environ.get("LECTURE"), os.environ.get("NANOGPT"))
    each = min(MAX_SECONDS, SHARE * seconds / len(decoders(model, device)))
    rows, failures = compare(model, batch, device, each, peers)
    lines = [*map(describe, rows), *failures]
    ours = [row for row in rows if row["implementation"].startswith("triton")]
    if not ours:
        return failed("none of our implementations was timed", lines=lines)
    return passed(describe(max(ours, key=lambda row: row["tokens/s"])), figures=rows, lines=lines)


def parts() -> dict[str, float]:
    return dict.fromkeys(PARTS, 1)
