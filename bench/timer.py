"""Times calls by the device's clock, with a cold cache, interleaved with other calls.

1. *Device clock.* CUDA events surround the call. The device sleeps before them for longer than the
   host needs to enqueue the call, so that they do not measure the host, whose time is measured
   apart. If the device wakes up early, the call is timed again after a longer sleep.
2. *Cold cache.* A buffer larger than any L2 cache is written before each call.
3. *Interleaved.* A B A B in one process, so that a drift of the GPU's clocks affects all alike.
4. *Spread.* Medians with the 20th and 80th percentile.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy
import torch

from gpt.hardware import synchronise

CACHE_BYTES = 256 * 2**20  # larger than the L2 cache of any GPU (H200: 60 MB, B200: 126 MB)
CYCLES_PER_SECOND = 2e9  # of the sleep kernel, roughly: a sleep that is too short is doubled
COPY_ELEMENTS, PRODUCT_SIZE = 2**29, 8192  # of the ceilings
WARM_UP = 3  # untimed calls first: compile, load, allocate
MIN_ROUNDS, MAX_ROUNDS = 5, 100
MARGIN = 25e-6  # seconds by which a sleep exceeds the host's time, before it is doubled
MAX_SLEEP = 0.02  # seconds; a call that takes longer to enqueue is bound by the host


class Trial(NamedTuple):
    """A timed `call` of the arguments that `before`, which is not timed, returns."""

    call: Callable
    before: Callable[[], tuple] = tuple


class Ceilings(NamedTuple):
    """Measured peaks of the GPU: bytes read plus written, bf16 multiply-adds x 2."""

    copy_bytes_per_second: float
    matmul_flops_per_second: float


class HostTimer:
    """Measures wall-clock seconds of a call on a CPU."""

    device = torch.device("cpu")

    def host_seconds(self, trial: Trial) -> float:
        """Seconds of a call on the host, which for a GPU only enqueues it."""
        arguments = trial.before()
        synchronise(self.device)
        start = time.perf_counter()
        trial.call(*arguments)
        seconds = time.perf_counter() - start
        synchronise(self.device)
        return seconds

    def __call__(self, trial: Trial, host: float) -> float:
        return self.host_seconds(trial)


class DeviceTimer(HostTimer):
    """Measures device seconds of a call on a CUDA GPU."""

    def __init__(self, device: torch.device):
        self.device = device
        self.cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device=device)
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, trial: Trial, host: float) -> float:
        """Device seconds of one call. host: the result of `host_seconds`."""
        sleep, is_early = 0.0, True
        while is_early and sleep < MAX_SLEEP:
            sleep = min(2 * max(sleep, host + MARGIN), MAX_SLEEP)
            arguments = trial.before()
            self.cache.zero_()
            torch.cuda._sleep(int(sleep * CYCLES_PER_SECOND))
            self.start.record()
            trial.call(*arguments)
            is_early = self.start.query()  # the device has woken up before the call was enqueued
            self.end.record()
            self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1e3  # from milliseconds


def make_timer(device: torch.device) -> HostTimer:
    return DeviceTimer(device) if device.type == "cuda" else HostTimer()


class Samples(NamedTuple):
    """The measurements of one trial."""

    seconds: list[float]
    host: float  # median seconds in which the host enqueues one call


def time_in_turn(trials: dict[str, Trial], timer: HostTimer, seconds: float) -> dict[str, Samples]:
    """Time all trials in turn, A B A B, for `seconds` and at least `MIN_ROUNDS` rounds."""
    samples: dict[str, list[float]] = {name: [] for name in trials}
    hosts = {}
    for name, trial in trials.items():
        calls = [timer.host_seconds(trial) for _ in range(2 * WARM_UP)]
        hosts[name] = statistics.median(calls[WARM_UP:])
    start = time.perf_counter()
    for turn in range(MAX_ROUNDS):
        if turn >= MIN_ROUNDS and time.perf_counter() - start >= seconds:
            break
        for name, trial in trials.items():
            samples[name].append(timer(trial, hosts[name]))
    return {name: Samples(samples[name], hosts[name]) for name in trials}


def spread(samples: list[float]) -> list[float]:
    """The median, and the 20th and 80th percentile."""
    return numpy.quantile(samples, (0.5, 0.2, 0.8)).tolist()


def median_seconds(call: Callable, timer: HostTimer) -> float:
    return statistics.median(time_in_turn({"": Trial(call)}, timer, seconds=0.2)[""].seconds)


def copy_rate(timer: HostTimer, elements: int) -> float:
    """Bytes per second, read plus written, of a copy of random bf16 numbers (zeros run faster)."""
    source = torch.randn(elements, dtype=torch.bfloat16, device=timer.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), timer)


def measure_ceilings(timer: HostTimer) -> Ceilings:
    """Time a copy of 1 GiB and an 8192^3 bf16 product of random numbers."""
    shape = (2, PRODUCT_SIZE, PRODUCT_SIZE)
    a, b = torch.randn(shape, dtype=torch.bfloat16, device=timer.device)
    product = torch.empty_like(a)
    seconds = median_seconds(lambda: torch.mm(a, b, out=product), timer)
    return Ceilings(copy_rate(timer, COPY_ELEMENTS), 2 * PRODUCT_SIZE**3 / seconds)


@functools.cache
def timer_and_ceilings(device: torch.device) -> tuple[HostTimer, Ceilings | None]:
    """The timer of a device, and the ceilings of a GPU."""
    timer = make_timer(device)
    return timer, measure_ceilings(timer) if device.type == "cuda" else None
