"""The timed operations against their baselines, as in `pytest bench`."""

import time
from collections import Counter

import torch

from bench.baselines import OURS, implementations
from bench.compare import Comparison, Failed, row
from bench.prove.stage import Outcome, failed, no_time, passed
from bench.timer import timer_and_ceilings
from bench.workloads import timed

PARTS = Counter(case.operation for case in timed.GPU)  # weighted by the number of cases
DEVICE = torch.device("cuda")


def work(operation: str, seconds: float) -> Outcome:
    deadline, rows, failures, done = time.monotonic() + seconds, [], [], 0
    timer, ceilings = timer_and_ceilings(DEVICE)
    cases = [case for case in timed.GPU if case.operation == operation]
    for case in cases:
        comparison = None  # frees the tensors of the last one
        for direction in timed.passes(case):
            if time.monotonic() > deadline:
                break
            if comparison is None:
                comparison = Comparison(case, implementations(case, DEVICE), DEVICE, timer)
            for name, one in comparison.run(direction).items():
                if not isinstance(one, Failed):
                    rows.append(row(case, direction, name, one, ceilings))
                elif name == OURS:
                    failures.append(one.reason)
            done += 1
    count = sum(len(timed.passes(case)) for case in cases)
    message = f"{len(rows)} measurements, {done} of {count} shapes and passes"
    if failures:
        return failed(f"{message}; ours: {failures[0]}", rows=rows)
    return passed(message, rows=rows) if rows else no_time()
