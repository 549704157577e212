"""Other tiles for every kernel and shape, timed: proposed lines for `kernels/common/launch.py`.

For the feed-forward first its routes: who computes which product.

From the row of `launch.TILES` that a case asks for, one number at a time is doubled or halved.
What compiles without spilling, and gives the numbers that the present tile gives, is timed in
turns with it, forward plus backward; from the best the search goes on. Compilation is in
parallel and without the card, into Triton's cache.
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
import time
from collections.abc import Iterator
from typing import Any

import torch

import kernels
from bench import workloads
from bench.baselines import Rival
from bench.cases import CASES
from bench.compare import Failed, Race, attempt
from bench.ledger.compiled import name, parse_target, record, rows
from bench.ledger.rules import findings
from bench.prove.stages import Outcome, passed
from bench.prove.stages.repeat import names
from bench.timer import DeviceStopwatch, spread
from kernels.common import launch

STEPS = 3  # from the present tile at most
WORTH = 0.02  # a tile that gains less than this is noise
TOLERANCE = 0.02  # between the results of two tiles in bf16, as a share of their norm
COMPILERS = 12
NOW = "now"


def work(operation: str, seconds: float) -> Outcome:
    device = torch.device("cuda")
    deadline = time.monotonic() + seconds
    watch = DeviceStopwatch(device)
    tried: list[dict] = []
    cases = [case for case in workloads.CARD if case.operation == operation]
    if operation == "feed_forward":
        tried += [one for case in cases for one in time_routes(case, device, watch)]
        cases += [case._replace(route=launch.GEMM) for case in cases]
    for case in cases:
        for kernel in asked_by(case, device):
            tried += climb(case, kernel, device, watch, compilers(), deadline)
    lines = [proposal(one) for one in tried if one["best"]]
    return passed(f"{len(tried)} tiles timed, {len(lines)} better", lines=lines, tried=tried)


@functools.cache
def compilers():
    """Processes that compile, for all parts of the stage."""
    return multiprocessing.get_context("spawn").Pool(min(COMPILERS, os.cpu_count() or 1))


def climb(case, kernel: str, device, watch, pool, deadline: float) -> list[dict]:
    """Steps to the best neighbour, as long as there is a better one and time is left."""
    architecture = launch.architecture(device)
    present = launch.tile(kernel, device)
    best, tried = present, {}
    for _ in range(STEPS):
        if time.monotonic() > deadline:
            break
        candidates = [
            tile
            for tile in neighbours(best)
            if repr(tile) not in tried and matters(case, kernel, tile, best, architecture)
        ]
        jobs = [(case, kernel, tile, architecture) for tile in candidates]
        compiles = pool.starmap(is_worth_timing, jobs)
        candidates = [tile for tile, good in zip(candidates, compiles, strict=True) if good]
        timings = time_tiles(case, kernel, [present, *candidates], device, watch)
        now = timings.pop(NOW)
        tried |= {name: seconds / now for name, seconds in timings.items()}
        winner = min(candidates, key=lambda tile: tried.get(repr(tile), 1.0), default=best)
        if tried.get(repr(winner), 1.0) >= tried.get(repr(best), 1.0) - WORTH:
            break
        best = winner
    route = f" by {' '.join(case.route)}" if case.route else ""
    return [
        {
            "case": f"{case.operation} {workloads.shape(case)}{route}",
            "kernel": kernel,
            "architecture": architecture,
            "tile": tile,
            "time": round(ratio, 3),  # a share of the present tile's
            "best": best is not present and tile == repr(best),
        }
        for tile, ratio in tried.items()
    ]


def time_routes(case, device, watch) -> list[dict]:
    """The time of every way that the feed-forward can go, against the one that it goes."""
    function = kernels.load("triton", device).feed_forward
    routes = [launch.Route(*way) for way in itertools.product(("gemm", "cublas"), repeat=3)]
    makers = {
        repr(tuple(route)): lambda route=route: Rival(function, around=lambda: launch.routed(route))
        for route in routes
    }
    results = Race(case, makers | {NOW: lambda: Rival(function)}, device, watch).run("both")
    seconds = {
        name: spread(samples.seconds).median
        for name, samples in results.items()
        if not isinstance(samples, Failed)
    }
    now = seconds.pop(NOW)
    fastest = min(seconds, key=seconds.get)
    return [
        {
            "case": f"{case.operation} {workloads.shape(case)}",
            "kernel": "ROUTES",
            "architecture": launch.architecture(device),
            "tile": route,
            "time": round(one / now, 3),
            "best": route == fastest and one < (1 - WORTH) * now,
        }
        for route, one in seconds.items()
    ]


def proposal(one: dict) -> str:
    gain = 100 * (1 - one["time"])
    line = f'"{one["kernel"]}": {{{one["architecture"]}: {one["tile"]}}}'
    return f"{line}  # {gain:.0f}% faster at {one['case']}"


def time_tiles(case, kernel: str, tiles: list, device, watch) -> dict[str, float]:
    """Seconds of both passes by the first tile, under `NOW`, and by each that is as right."""
    function = getattr(kernels.load("triton", device), case.operation)

    @contextlib.contextmanager
    def around(tile):
        with using(kernel, tile), launch.routed(case.route):
            yield

    rivals = {repr(tile): tile for tile in tiles[1:]} | {NOW: tiles[0]}
    torch.manual_seed(0)
    makers = {
        name: lambda tile=tile: Rival(function, around=lambda: around(tile))
        for name, tile in rivals.items()
    }
    results = Race(case, makers, device, watch).run("both")
    expected = values(case, kernel, tiles[0], device)
    return {
        name: spread(samples.seconds).median
        for name, samples in results.items()
        if not isinstance(samples, Failed)
        and (name == NOW or close(values(case, kernel, rivals[name], device), expected))
    }


def values(case, kernel: str, tile, device) -> list[torch.Tensor]:
    """Values and gradients of the case by `tile`, from the same inputs each time."""
    torch.manual_seed(0)
    inputs = case.inputs(device)
    leaves = [one for one in inputs if isinstance(one, torch.Tensor) and one.requires_grad]
    with using(kernel, tile):
        outputs = case.call(kernels.load("triton", device), inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        gradients = torch.autograd.grad(outputs, leaves, [one.detach() for one in outputs])
    return [*outputs, *gradients]


def close(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(
        (a.float() - e.float()).norm() <= TOLERANCE * e.float().norm()  # False where NaN
        for a, e in zip(actual, expected, strict=True)
    )


@contextlib.contextmanager
def using(kernel: str, tile: Any) -> Iterator[None]:
    """`kernel` launched with `tile`, on whatever architecture."""
    rows = launch.TILES[kernel]
    launch.TILES[kernel] = dict.fromkeys(rows, tile)
    try:
        yield
    finally:
        launch.TILES[kernel] = rows


class _Watched(dict):
    """A table that knows which of its rows were asked for."""

    def __init__(self, table: dict):
        super().__init__(table)
        self.asked: dict[str, None] = {}

    def __getitem__(self, key):
        self.asked[key] = None
        return super().__getitem__(key)


def asked_by(case, device: torch.device) -> list[str]:
    """The rows of `launch.TILES` that decide how `case` is launched."""
    tiles, launch.TILES = launch.TILES, _Watched(launch.TILES)
    try:
        record(case, launch.architecture(device))
        return list(launch.TILES.asked)
    finally:
        launch.TILES = tiles


def neighbours(tile: Any) -> list:
    """Every tile that differs in one number, doubled or halved; small ones also by one."""
    if isinstance(tile, bool) or not isinstance(tile, (int, tuple, list, dict)):
        return []
    if isinstance(tile, int):
        near = (tile - 1, tile + 1) if tile <= 4 else ()
        return sorted({number for number in (tile // 2, 2 * tile, *near) if 0 < number != tile})
    if isinstance(tile, dict):
        return [{**tile, key: other} for key, value in tile.items() for other in neighbours(value)]
    places = [(i, other) for i, value in enumerate(tile) for other in neighbours(value)]
    make = tile._make if hasattr(tile, "_make") else type(tile)
    return [make([*tile[:i], other, *tile[i + 1 :]]) for i, other in places]


def matters(case, kernel: str, tile: Any, present: Any, architecture: int) -> bool:
    """Whether `case` can be launched by `tile`, and other than by the present one."""
    launched = attempt(_launches, case, kernel, tile, architecture)
    return not isinstance(launched, Failed) and launched != _launches(
        case, kernel, present, architecture
    )


def _launches(case, kernel: str, tile: Any, architecture: int) -> list:
    with using(kernel, tile):
        launched = record(case, architecture)
    return [(name(one.launch), one.launch.grid, one.launch.options) for one in launched]


def is_worth_timing(case, kernel: str, tile: Any, architecture: int) -> bool:
    """Whether everything that `case` launches by `tile` compiles, fits and does not spill."""
    target = parse_target("80" if architecture in (86, 89) else str(architecture))
    with using(kernel, tile):
        compiled = rows(record(case, architecture), target)
    return not any("error" in row or row["spills"] or _too_large(row) for row in compiled)


def _too_large(row: dict) -> bool:
    return any("shared memory" in finding for finding in findings(row))


def parts() -> dict[str, float]:
    return dict.fromkeys(names((*workloads.STEPS, *CASES)), 1)  # steps first
