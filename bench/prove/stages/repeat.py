"""Determinism: operations and training steps give the same bits 250 times beside a busy stream."""

from collections.abc import Callable
from functools import partial

import torch

import kernels
from bench.prove.stage import Outcome, failed, passed
from bench.workloads.operations import CASES, UPDATES
from bench.workloads.steps import STEPS, TrainingStep
from gpt.training.step import GraphStep

RUNS = 250
SIZE = 2048  # of the other stream's matrix products, about 20 us on an H200
PRODUCTS_PER_RUN = 4
WORKLOADS = (*CASES, *UPDATES, *(step for step in STEPS if isinstance(step, TrainingStep)))
PARTS = tuple(dict.fromkeys(str(case) if case in STEPS else case.operation for case in WORKLOADS))


def work(part: str, seconds: float) -> Outcome:
    device = torch.device("cuda")
    cases = [case for case in WORKLOADS if part in (case.operation, str(case))]
    for case in cases:
        differing = differing_runs(seeded(case, kernels.load("triton", device), device), device)
        if differing:
            return failed(f"{differing} of {RUNS} runs differ from the first at {case}")
    return passed(f"{RUNS} equal runs at each of {len(cases)} cases")


def differing_runs(run: Callable[[], list[torch.Tensor]], device: torch.device) -> int:
    """The number of runs in which a bit of a value or a gradient differs from the first run."""
    first = run()
    matrix = torch.randn(SIZE, SIZE, dtype=torch.bfloat16, device=device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    differing = torch.zeros((), dtype=torch.int64, device=device)
    for _ in range(RUNS - 1):
        with torch.cuda.stream(stream):
            for _ in range(PRODUCTS_PER_RUN):
                matrix @ matrix
        differs = [bits(a).ne(bits(b)).any() for a, b in zip(first, run(), strict=True)]
        differing += torch.stack(differs).any()
    return differing.item()


def seeded(case, ops: kernels.Ops, device, **sizes) -> Callable[[], list[torch.Tensor]]:
    """A function that returns all results of a case from the same random numbers, dropout too."""
    if isinstance(case, TrainingStep):
        results = partial(gradients, case.step(device, ops, **sizes))
    else:
        results = partial(case.run, ops, device)

    def run():
        torch.manual_seed(0)
        return results()

    return run


def gradients(step: GraphStep) -> list[torch.Tensor]:
    """The loss and all gradients of a training step."""
    loss, _ = step.gradients(step.number)
    leaves = [*step.gradients.parameters, *step.gradients.copies.values()]
    found = [leaf.grad for leaf in leaves if leaf.grad is not None]
    step.clear()
    return [loss, *found]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes, so that NaN equals itself and -0 differs from 0."""
    return tensor.reshape(-1).contiguous().view(torch.uint8)
