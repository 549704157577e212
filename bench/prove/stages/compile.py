"""What other stages launch, compiled ahead on all cores into Triton's cache.

Whole steps come first, then the operations that are timed, then the neighbours of their tiles.
Launches are recorded as for the ledger, so that the GPU is left to whoever runs beside this.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator

import torch
from triton.runtime.driver import driver

from bench import workloads
from bench.compare import Failed, attempt
from bench.ledger.compiled import Offline, compile_launch, parse_target, record
from bench.prove.stages import Outcome, passed
from bench.prove.stages.tune import asked_by, neighbours, using
from bench.steps import STEPS
from kernels.common import launch
from kernels.common.launch import tile

META = torch.device("meta")
PATIENCE = 0.1  # seconds between looks at the clock


def work(part: str, seconds: float) -> Outcome:
    deadline = time.monotonic() + seconds
    architecture = launch.architecture(torch.device("cuda"))
    workers = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    done, total = context.Value("i", 0), context.Value("i", 0)
    jobs = [
        context.Process(target=compile_share, args=(architecture, index, workers, done, total))
        for index in range(workers)
    ]
    for job in jobs:
        job.start()
    while any(job.is_alive() for job in jobs) and time.monotonic() < deadline:
        time.sleep(PATIENCE)
    for job in jobs:
        job.kill()
    return passed(f"{done.value} of {total.value or 'all'} kernels are compiled")


def compile_share(architecture: int, index: int, workers: int, done, total) -> None:
    """Compile every one in `workers` of the launches."""
    driver.set_active(Offline(parse_target(str(architecture)).gpu))
    launches = list(distinct(launched(architecture)))
    total.value = len(launches)
    for one in launches[index::workers]:
        if not isinstance(attempt(compile_launch, one), Failed):  # some tiles are too large
            with done.get_lock():
                done.value += 1


def launched(architecture: int) -> Iterator[launch.Launch]:
    """What steps, operations and tuning launch."""
    cases = [case for case in workloads.CARD if hasattr(case, "run")]
    for case in (*STEPS, *cases):
        yield from (one.launch for one in record(case, architecture))
    for case in workloads.STEPS:
        with launch.target(architecture):
            kernels = asked_by(case, META)
            tiles = [(kernel, one) for kernel in kernels for one in neighbours(tile(kernel, META))]
        for kernel, one in tiles:
            with using(kernel, one):
                found = attempt(record, case, architecture)
            if not isinstance(found, Failed):
                yield from (one.launch for one in found)


def distinct(launches) -> Iterator[launch.Launch]:
    """One of those that Triton compiles to the same kernel."""
    seen = set()
    for one in launches:
        key = (one.kernel, *map(_specialised, one.arguments), repr(sorted(one.options.items())))
        if key not in seen:
            seen.add(key)
            yield one


def _specialised(value):
    if isinstance(value, torch.Tensor):
        return value.dtype
    return (value == 1, value % 16 == 0) if isinstance(value, int) else repr(value)


def parts() -> dict[str, float]:
    return {"kernels": 1}
