"""Compiles ahead, in parallel: our kernels into Triton's cache, torch.compile's steps into its own.

    python -m bench.prove.compile 90 0 16      compile one share in 16 of the kernels for sm_90

Kernels of whole steps come first, then those of the timed operations, then their neighbouring
tiles. Launches are recorded as for the ledger, so that the GPU is free for other stages.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import torch

from bench.compare import Failed, attempt
from bench.ledger.compiled import compile_launch, record, set_offline_driver
from bench.prove.stage import Outcome, passed
from bench.prove.stages.step import COMPILED
from bench.prove.stages.tune import neighbours, tiles_used_by, use_tile
from bench.results import REPOSITORY
from bench.workloads import timed
from bench.workloads.operations import BLOCK
from bench.workloads.steps import STEPS
from kernels.common import launch

META = torch.device("meta")
KERNELS, TORCH_COMPILE = "kernels", "torch.compile"
STEP = ("-m", "bench.prove.stage", "bench.prove.stages.step", "--seconds=0.1")
THREADS = {"TORCHINDUCTOR_COMPILE_THREADS": "3"}  # for each step


def work(part: str, seconds: float) -> Outcome:
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        if part == KERNELS:
            count = os.cpu_count() or 1
            share = ("-m", __name__, str(launch.architecture(torch.device("cuda"))))
            commands = [[*share, str(index), str(count)] for index in range(count)]
        else:
            commands = [[*STEP, f"--only={step}"] for step in COMPILED]
            commands = [
                [*command, f"--report={folder}/{index}"] for index, command in enumerate(commands)
            ]
        jobs = [
            subprocess.Popen([sys.executable, *one], cwd=REPOSITORY, env=os.environ | THREADS)
            for one in commands
        ]
        for job in jobs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(max(0.0, deadline - time.monotonic()))
            job.kill()
    done = sum(job.wait() == 0 for job in jobs)
    return passed(f"{done} of {len(jobs)} jobs were done in time")


def main(architecture: str, index: str, count: str) -> None:
    set_offline_driver(architecture)
    for one in list(distinct(launches(int(architecture))))[int(index) :: int(count)]:
        attempt(compile_launch, one)  # some tiles are too large


def launches(architecture: int) -> Iterator[launch.Launch]:
    """The launches of steps, timed operations and tuning."""
    for case in (*STEPS, *(case for case in timed.GPU if case.operation != BLOCK)):
        yield from (one.launch for one in record(case, architecture))
    for case in timed.TRAINING:
        with launch.target(architecture):
            used = {kernel: launch.tile(kernel, META) for kernel in tiles_used_by(case, META)}
        for kernel, present in used.items():
            for tile in neighbours(present):
                with use_tile(kernel, tile):
                    recorded = attempt(record, case, architecture)
                if not isinstance(recorded, Failed):
                    yield from (one.launch for one in recorded)


def distinct(launches) -> Iterator[launch.Launch]:
    """One launch of each compiled kernel."""
    seen = set()
    for one in launches:
        key = (one.kernel, *map(_specialised, one.arguments), repr(sorted(one.options.items())))
        if key not in seen:
            seen.add(key)
            yield one


def _specialised(value):
    """What Triton specialises a kernel for."""
    if isinstance(value, torch.Tensor):
        return value.dtype
    return (value == 1, value % 16 == 0) if isinstance(value, int) else repr(value)


def parts() -> dict[str, float]:
    return {KERNELS: 1, TORCH_COMPILE: 1}


if __name__ == "__main__":
    main(*sys.argv[1:])
