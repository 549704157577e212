"""Times other tiles of every kernel and shape, and proposes lines for `kernels/common/launch.py`.

In the row of `launch.TILES` that a case uses, one number at a time is doubled or halved. Tiles that
compile are timed with the present tile, interleaved, forward plus backward. Before you use a tile,
run the kernel's tests and `make ledger`.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch

import kernels
from bench.baselines import Baseline
from bench.compare import Comparison, Failed, attempt
from bench.ledger.compiled import name, record
from bench.prove.stage import Outcome, passed
from bench.timer import DeviceTimer
from bench.workloads import timed
from bench.workloads.operations import CASES
from kernels.common import launch
from kernels.common.launch import Launch

MIN_GAIN = 0.02  # smaller gains are noise
PRESENT = "present"
PARTS = tuple(dict.fromkeys(case.operation for case in (*timed.TRAINING, *CASES)))  # training first


def work(operation: str, seconds: float) -> Outcome:
    device = torch.device("cuda")
    deadline = time.monotonic() + seconds
    timer = DeviceTimer(device)
    tried: list[dict] = []
    cases = [case for case in timed.GPU if case.operation == operation]
    if operation == "feed_forward":
        cases += [case._replace(route=launch.GEMM) for case in cases]
    for case in cases:
        for kernel in tiles_used_by(case, device):
            if time.monotonic() < deadline:
                tried += time_neighbours(case, kernel, device, timer)
    proposal = '"{kernel}": {{{architecture}: {tile}}}  # {time:.0%} of the time at {case}'
    lines = [proposal.format(**one) for one in tried if one["best"]]
    return passed(f"{len(tried)} tiles timed, {len(lines)} faster", lines=lines, tried=tried)


def time_neighbours(case, kernel: str, device: torch.device, timer) -> list[dict]:
    """Time both passes with the neighbours of the kernel's present tile; a row for each of them."""
    tiles = {PRESENT: launch.tile(kernel, device)}
    tiles |= {repr(tile): tile for tile, _ in variants(case, kernel, device)}
    function = getattr(kernels.load("triton", device), case.operation)
    makers = {
        label: partial(Baseline, function, partial(use_tile, kernel, tile, case.route))
        for label, tile in tiles.items()
    }
    samples = Comparison(case, makers, device, timer).run("both")
    seconds = {
        label: statistics.median(of_tile.seconds)
        for label, of_tile in samples.items()
        if not isinstance(of_tile, Failed)
    }
    at_present = seconds.pop(PRESENT)
    fastest = min(seconds, key=seconds.get, default=None)
    route = f" by {' '.join(case.route)}" if case.route else ""
    return [
        {
            "case": f"{case.operation} {timed.shape(case)}{route}",
            "kernel": kernel,
            "architecture": launch.architecture(device),
            "tile": label,
            "time": round(one / at_present, 3),  # relative to the present tile
            "best": label == fastest and one < (1 - MIN_GAIN) * at_present,
        }
        for label, one in seconds.items()
    ]


@contextlib.contextmanager
def use_tile(kernel: str, tile: Any, route: launch.Route | None = None) -> Iterator[None]:
    """Launch `kernel` with `tile` on every architecture, and the feed-forward by `route`."""
    tiles = {kernel: dict.fromkeys(launch.TILES[kernel], tile)}
    with mock.patch.dict(launch.TILES, tiles), launch.routed(route):
        yield


def tiles_used_by(case, device: torch.device) -> list[str]:
    """The rows of `launch.TILES` that a case is launched with."""
    used: dict[str, None] = {}

    class Watched(dict):
        def __getitem__(self, kernel):
            used[kernel] = None
            return super().__getitem__(kernel)

    with mock.patch.object(launch, "TILES", Watched(launch.TILES)):
        record(case, launch.architecture(device))
    return list(used)


def variants(case, kernel: str, device: torch.device) -> list[tuple[Any, list[Launch]]]:
    """The neighbours of the present tile that change the launches of a case, and these launches."""

    def launches(tile):
        with use_tile(kernel, tile):
            return record(case, launch.architecture(device))

    def described(some):
        return [(name(one), one.grid, one.options) for one in some]

    present = launch.tile(kernel, device)
    now = described(launches(present))
    tried = [(tile, attempt(launches, tile)) for tile in neighbours(present)]
    return [pair for pair in tried if isinstance(pair[1], list) and described(pair[1]) != now]


def neighbours(tile: Any) -> list:
    """Every tile that differs in one number, doubled or halved; numbers up to 4 also by one."""
    if isinstance(tile, bool) or not isinstance(tile, (int, tuple, dict)):
        return []
    if isinstance(tile, int):
        near = (tile - 1, tile + 1) if tile <= 4 else ()
        return sorted({number for number in (tile // 2, 2 * tile, *near) if 0 < number != tile})
    if isinstance(tile, dict):
        return [{**tile, key: other} for key, value in tile.items() for other in neighbours(value)]
    return [
        (*tile[:i], other, *tile[i + 1 :])
        for i, value in enumerate(tile)
        for other in neighbours(value)
    ]
