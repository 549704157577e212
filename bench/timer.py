"""How a call is timed: by the device's own clock, from a cold cache, in turns with its rivals.

1. *The device's clock.* CUDA events around the call. Before them the device is kept asleep for
   longer than the host needs to enqueue the call, so that the events do not count the host's
   launches; what the host needs is told apart (`host_seconds`). A call during which the device
   woke up does not count: it is timed again after a longer sleep.
2. *A cold cache.* A buffer larger than any L2 is written before each call.
3. *In turns.* A B A B in one process, so that a drift of the card's clocks meets all alike.
4. *Spread.* Medians, with the 20th and 80th percentile.

Without a card the same interface is served by the host's clock, without clearing a cache.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

CACHE_BYTES = 256 * 2**20  # past the L2 of every card there is (H200: 60 MB, B200: 126 MB)
SLEEP_CYCLES = 10_000_000  # some 5 ms, the length on which the sleeping kernel is calibrated
COPY_ELEMENTS, PRODUCT_SIZE = 2**29, 8192  # of the ceilings
WARM_UP = 3  # calls before the first timed one: compile, load, allocate
LEAST_ROUNDS, MOST_ROUNDS = 5, 100
LONGEST_HEAD_START = 0.02  # a call that needs longer to enqueue than this is bound by the host


class Spread(NamedTuple):
    """Seconds."""

    median: float
    p20: float
    p80: float


class Trial(NamedTuple):
    """`call` is timed; `before`, where there is one, runs untimed and hands it its argument."""

    call: Callable
    before: Callable | None = None


class Ceilings(NamedTuple):
    """What the card does at best, measured: bytes read plus written, bf16 multiply-adds x 2."""

    copy_bytes_per_second: float
    matmul_flops_per_second: float

    def floor(self, bytes_moved: float, flops: float) -> float:
        """Seconds below which no kernel can do this work."""
        return max(bytes_moved / self.copy_bytes_per_second, flops / self.matmul_flops_per_second)


class DeviceStopwatch:
    """Device seconds of a call on one CUDA card."""

    def __init__(self, device: torch.device):
        self.cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device=device)
        self.start = torch.cuda.Event(enable_timing=True)
        self.end = torch.cuda.Event(enable_timing=True)
        self.cycles_per_second = 0.0
        for _ in range(2):  # the first one loads the kernel and wakes the card
            seconds, _ = self.between_events(torch.cuda._sleep, SLEEP_CYCLES)
            self.cycles_per_second = SLEEP_CYCLES / seconds

    def between_events(self, call, *arguments) -> tuple[float, bool]:
        """Device seconds of a call, and whether the device had begun before all was enqueued."""
        self.start.record()
        call(*arguments)
        begun = self.start.query()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1e3, begun  # elapsed_time is in milliseconds

    def host_seconds(self, trial: Trial) -> float:
        """How long the host needs to enqueue the call."""
        arguments = _arguments(trial)
        torch.cuda.synchronize()
        start = time.perf_counter()
        trial.call(*arguments)
        host = time.perf_counter() - start
        torch.cuda.synchronize()
        return host

    def __call__(self, trial: Trial, host: float) -> float:
        """Seconds of one call; `host` is what `host_seconds` has found."""

        def behind(sleep: float) -> tuple[float, bool]:
            arguments = _arguments(trial)
            self.cache.zero_()
            torch.cuda._sleep(int(sleep * self.cycles_per_second))
            return self.between_events(trial.call, *arguments)

        return asleep_throughout(behind, head_start(host))


class HostStopwatch:
    """Wall-clock seconds of a call on a CPU."""

    def host_seconds(self, trial: Trial) -> float:
        return self(trial, 0.0)

    def __call__(self, trial: Trial, host: float) -> float:
        arguments = _arguments(trial)
        start = time.perf_counter()
        trial.call(*arguments)
        return time.perf_counter() - start


def stopwatch(device: torch.device):
    return DeviceStopwatch(device) if device.type == "cuda" else HostStopwatch()


def _arguments(trial: Trial) -> tuple:
    return () if trial.before is None else (trial.before(),)


def head_start(host: float) -> float:
    """How long the device sleeps so that the host, needing `host` seconds, is ahead of it."""
    return min(2 * host + 50e-6, LONGEST_HEAD_START)


def asleep_throughout(behind: Callable[[float], tuple[float, bool]], sleep: float) -> float:
    """The seconds of `behind(sleep)`, again with twice the sleep while the device wakes in it."""
    seconds, begun = behind(sleep)
    while begun and sleep < LONGEST_HEAD_START:
        sleep = min(2 * sleep, LONGEST_HEAD_START)
        seconds, begun = behind(sleep)
    return seconds


class Samples(NamedTuple):
    """What `in_turns` returns for each trial."""

    seconds: list[float]
    host: float  # seconds to enqueue one call, the median of a few


def in_turns(
    trials: dict[str, Trial], watch, seconds: float, clock=time.perf_counter
) -> dict[str, Samples]:
    """Time every trial in turns, A B A B, until `seconds` are over (but `LEAST_ROUNDS` times)."""
    hosts = {}
    for name, trial in trials.items():
        warm_up = [watch.host_seconds(trial) for _ in range(2 * WARM_UP)]
        hosts[name] = statistics.median(warm_up[WARM_UP:])
    samples: dict[str, list[float]] = {name: [] for name in trials}
    start = clock()
    for turn in range(MOST_ROUNDS):
        if turn >= LEAST_ROUNDS and clock() - start >= seconds:
            break
        for name, trial in trials.items():
            samples[name].append(watch(trial, hosts[name]))
    return {name: Samples(samples[name], hosts[name]) for name in trials}


def spread(samples: list[float]) -> Spread:
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    p20, _, _, p80 = statistics.quantiles(samples, n=5, method="inclusive")
    return Spread(statistics.median(samples), p20, p80)


def measure_ceilings(device: torch.device, watch: DeviceStopwatch) -> Ceilings:
    """A copy of 1 GiB and an 8192^3 bf16 product, of random numbers (zeros run faster)."""
    source = torch.randn(COPY_ELEMENTS, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    a, b = torch.randn(2, PRODUCT_SIZE, PRODUCT_SIZE, dtype=torch.bfloat16, device=device)
    product = torch.empty_like(a)
    times = in_turns(
        {
            "copy": Trial(lambda: target.copy_(source)),
            "matmul": Trial(lambda: torch.mm(a, b, out=product)),
        },
        watch,
        seconds=0.2,
    )
    copy, matmul = (spread(times[name].seconds).median for name in ("copy", "matmul"))
    return Ceilings(2 * source.nbytes / copy, 2 * PRODUCT_SIZE**3 / matmul)


class Replay:
    """A clock that stands still except in `advance`: it hands pytest-benchmark measured times.

    pytest-benchmark reads its timer before and after a function. The rivals of a group are timed
    in turns, before any of them reports, so the function that it is given only moves this clock
    on by the next of the seconds that were measured.
    """

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
