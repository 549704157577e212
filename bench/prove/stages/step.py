"""Whole training steps of every preset: by the reference, PyTorch, torch.compile and Triton.

Set NANOGPT to the path of a checkout to time nanoGPT's own step in the same run.
"""

import os

import torch

import kernels
from bench.prove.stage import Outcome, not_available, passed
from bench.training import SIZES, VARIANTS, measure

SHARE = 0.5  # of a part's time for timing; the rest is for compilation and capture
MAX_SECONDS = 2.0
STEPS = {f"{preset}: {variant}": (preset, variant) for variant in VARIANTS for preset in SIZES}
PARTS = tuple(STEPS)
COMPILED = tuple(part for part, (_, variant) in STEPS.items() if variant.compile)


def work(part: str, seconds: float) -> Outcome:
    preset, variant = STEPS[part]
    device, nanogpt = torch.device("cuda", 0), os.environ.get("NANOGPT")
    if variant.kernels == "nanogpt" and nanogpt is None:
        return not_available("NANOGPT is not set to the path of a checkout")
    if variant.kernels == "triton" and (reason := kernels.unavailable_reason(device)):
        return not_available(reason)
    row = measure(preset, variant, device, min(MAX_SECONDS, SHARE * seconds), nanogpt)
    message = "{milliseconds:.2f} ms, {tokens_per_second:,.0f} tok/s".format(**row)
    return passed(message, figures=row, lines=[f"{part}: {message}"])
