"""Compiles ahead, in parallel: our kernels into Triton's cache, and what peers compile into theirs.

Kernels of whole steps come first, then those of timed operations, of compute-sanitizer, and other
tiles. Launches are recorded as for the ledger, so that the GPU is free for other stages.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from functools import partial
from types import SimpleNamespace

import torch

from bench.baselines import implementations
from bench.compare import Comparison, attempt
from bench.ledger.compiled import compile_launch, record, set_offline_driver
from bench.prove.stage import SPAWN
from bench.prove.stages import sanitize, step
from bench.prove.stages.tune import tiles_used_by, variants
from bench.workloads import timed
from bench.workloads.steps import STEPS
from kernels.common import launch

META = torch.device("meta")
CACHED = "torch.compile", "flash-attn-4"  # they keep what they compile on disk


def compile_kernels() -> None:
    """Compile the kernels of the plan for this GPU, on every core."""
    architecture, count = launch.architecture(torch.device("cuda")), os.cpu_count() or 1
    os.environ["TRITON_INTERPRET"] = "0"  # read on import
    with SPAWN.Pool(count) as pool:
        pool.starmap(_compile_share, [(architecture, index, count) for index in range(count)])


def _compile_share(architecture: int, index: int, count: int) -> None:
    set_offline_driver(str(architecture))
    for one in distinct(launches(architecture))[index::count]:
        attempt(compile_launch, one)  # some tiles are too large


def compile_step(part: str) -> None:
    """Compile a part of the stage `step`, which others do at the same time."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "3"
    step.work(part, 0.1)


def compile_operations(first: int) -> None:
    """Compile every third timed operation by the implementations in `CACHED`."""
    device = torch.device("cuda")
    for case in timed.GPU[first::3]:
        made = implementations(case, device)
        made = {name: made[name] for name in CACHED if callable(made.get(name))}
        comparison = Comparison(case, made, device, timer=None)
        for name, direction in itertools.product(made, timed.passes(case)):
            attempt(comparison.trial, name, direction)


COMPILATIONS: tuple[tuple, ...] = (
    *((compile_step, part) for part in step.COMPILED),
    *((compile_operations, first) for first in range(3)),
)


def launches(architecture: int) -> Iterator[launch.Launch]:
    """The launches of steps, timed operations, compute-sanitizer and tuning."""
    small = [SimpleNamespace(run=partial(one.run, **sanitize.STEP_SIZES)) for one in STEPS]
    for case in (*STEPS, *timed.GPU, *sanitize.cases(), *small):
        yield from record(case, architecture)
    for case in timed.TRAINING:
        with launch.target(architecture):
            tiles = [variants(case, kernel, META) for kernel in tiles_used_by(case, META)]
        for _, found in itertools.chain(*tiles):
            yield from found


def distinct(launches: Iterable[launch.Launch]) -> list[launch.Launch]:
    """One launch of each compiled kernel."""
    found: dict[tuple, launch.Launch] = {}
    for one in launches:
        key = (one.kernel, *map(_specialised, one.arguments), repr(sorted(one.options.items())))
        found.setdefault(key, one)
    return list(found.values())


def _specialised(value):
    """What Triton specialises a kernel for."""
    if isinstance(value, torch.Tensor):
        return value.dtype
    return (value == 1, value % 16 == 0) if isinstance(value, int) else repr(value)
