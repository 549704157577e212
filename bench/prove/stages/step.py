"""Whole training steps: every preset, by the reference, PyTorch, torch.compile and Triton.

Set NANOGPT to the path of a checkout to have nanoGPT's own step in the same run.
"""

import os

import torch

from bench.prove.stages import Outcome, not_there, passed
from bench.training import SIZES, WAYS, measure, told, why_not

SHARE = 0.5  # of a part's time spent timing; compiling and capturing need the rest
MOST_SECONDS = 2.0
PARTS = {f"{preset}: {way}": (preset, way) for way in WAYS for preset in SIZES}
COMPILED = [part for part, (_, way) in PARTS.items() if way.compile]
UNCOMPILED = [part for part in PARTS if part not in COMPILED]


def work(part: str, seconds: float) -> Outcome:
    preset, way = PARTS[part]
    device, nanogpt = torch.device("cuda", 0), os.environ.get("NANOGPT")
    reason = why_not(way, device, nanogpt)
    if reason:
        return not_there(reason)
    row = measure(preset, way, device, min(MOST_SECONDS, SHARE * seconds), nanogpt)
    return passed(told(row), figures=row, lines=[told(row)])


def parts() -> dict[str, float]:
    return {part: 3 if part in COMPILED else 1 for part in PARTS}
