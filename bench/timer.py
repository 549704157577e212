"""Times calls by the device's clock, with a cold cache, interleaved with other calls.

1. *Device clock.* CUDA events surround the call. The device sleeps before them for longer than the
   host needs to enqueue the call, so that they do not measure the host; the host's time is measured
   separately (`host_seconds`). If the device wakes up early, the call is timed again after a longer
   sleep.
2. *Cold cache.* A buffer larger than any L2 cache is written before each call.
3. *Interleaved.* A B A B in one process, so that a drift of the GPU's clocks affects all alike.
4. *Spread.* Medians with the 20th and 80th percentile.

Without a GPU the same interface uses the host's clock and leaves the cache alone.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

CACHE_BYTES = 256 * 2**20  # larger than the L2 cache of any GPU (H200: 60 MB, B200: 126 MB)
SLEEP_CYCLES = 10_000_000  # about 5 ms, the duration for which the sleep kernel is calibrated
COPY_ELEMENTS, PRODUCT_SIZE = 2**29, 8192  # of the ceilings
WARM_UP = 3  # untimed calls first: compile, load, allocate
MIN_ROUNDS, MAX_ROUNDS = 5, 100
MAX_SLEEP = 0.02  # seconds; a call that takes longer to enqueue is bound by the host


class Spread(NamedTuple):
    """Seconds."""

    median: float
    p20: float
    p80: float


class Trial(NamedTuple):
    """A timed `call`; `before`, if present, runs untimed and returns the argument of `call`."""

    call: Callable
    before: Callable | None = None

    def arguments(self) -> tuple:
        return () if self.before is None else (self.before(),)


class Ceilings(NamedTuple):
    """Measured peaks of the GPU: bytes read plus written, bf16 multiply-adds x 2."""

    copy_bytes_per_second: float
    matmul_flops_per_second: float

    def floor(self, bytes_moved: float, flops: float) -> float:
        """The fewest seconds that any kernel needs for this work."""
        return max(bytes_moved / self.copy_bytes_per_second, flops / self.matmul_flops_per_second)


class DeviceTimer:
    """Measures device seconds of a call on a CUDA GPU."""

    def __init__(self, device: torch.device):
        self.cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device=device)
        self.start = torch.cuda.Event(enable_timing=True)
        self.end = torch.cuda.Event(enable_timing=True)
        self.cycles_per_second = 0.0
        for _ in range(2):  # the first sleep loads the kernel and wakes the GPU
            seconds, _ = self.between_events(torch.cuda._sleep, SLEEP_CYCLES)
            self.cycles_per_second = SLEEP_CYCLES / seconds

    def between_events(self, call, *arguments) -> tuple[float, bool]:
        """Device seconds of a call, and whether the device started before all was enqueued."""
        self.start.record()
        call(*arguments)
        started = self.start.query()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1e3, started  # elapsed_time is in milliseconds

    def host_seconds(self, trial: Trial) -> float:
        """Seconds in which the host enqueues the call."""
        arguments = trial.arguments()
        torch.cuda.synchronize()
        start = time.perf_counter()
        trial.call(*arguments)
        seconds = time.perf_counter() - start
        torch.cuda.synchronize()
        return seconds

    def __call__(self, trial: Trial, host: float) -> float:
        """Device seconds of one call. host: the result of `host_seconds`."""

        def after_sleep(sleep: float) -> tuple[float, bool]:
            arguments = trial.arguments()
            self.cache.zero_()
            torch.cuda._sleep(int(sleep * self.cycles_per_second))
            return self.between_events(trial.call, *arguments)

        return retry_with_longer_sleep(after_sleep, initial_sleep(host))


class HostTimer:
    """Measures wall-clock seconds of a call on a CPU."""

    def host_seconds(self, trial: Trial) -> float:
        return self(trial, 0.0)

    def __call__(self, trial: Trial, host: float) -> float:
        arguments = trial.arguments()
        start = time.perf_counter()
        trial.call(*arguments)
        return time.perf_counter() - start


def make_timer(device: torch.device) -> DeviceTimer | HostTimer:
    return DeviceTimer(device) if device.type == "cuda" else HostTimer()


def initial_sleep(host: float) -> float:
    """Seconds for which the device sleeps while the host enqueues for `host` seconds."""
    return min(2 * host + 50e-6, MAX_SLEEP)


def retry_with_longer_sleep(
    after_sleep: Callable[[float], tuple[float, bool]], sleep: float
) -> float:
    """The seconds of `after_sleep(sleep)`, retried with twice the sleep while the device wakes."""
    seconds, started = after_sleep(sleep)
    while started and sleep < MAX_SLEEP:
        sleep = min(2 * sleep, MAX_SLEEP)
        seconds, started = after_sleep(sleep)
    return seconds


class Samples(NamedTuple):
    """The measurements of one trial."""

    seconds: list[float]
    host: float  # median seconds in which the host enqueues one call


def time_interleaved(
    trials: dict[str, Trial], timer, seconds: float, clock=time.perf_counter
) -> dict[str, Samples]:
    """Time all trials in turn, A B A B, for `seconds` and at least `MIN_ROUNDS` rounds."""
    hosts = {}
    for name, trial in trials.items():
        calls = [timer.host_seconds(trial) for _ in range(2 * WARM_UP)]
        hosts[name] = statistics.median(calls[WARM_UP:])
    samples: dict[str, list[float]] = {name: [] for name in trials}
    start = clock()
    for turn in range(MAX_ROUNDS):
        if turn >= MIN_ROUNDS and clock() - start >= seconds:
            break
        for name, trial in trials.items():
            samples[name].append(timer(trial, hosts[name]))
    return {name: Samples(samples[name], hosts[name]) for name in trials}


def spread(samples: list[float]) -> Spread:
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    p20, _, _, p80 = statistics.quantiles(samples, n=5, method="inclusive")
    return Spread(statistics.median(samples), p20, p80)


def measure_ceilings(device: torch.device, timer: DeviceTimer) -> Ceilings:
    """Time a copy of 1 GiB and an 8192^3 bf16 product of random numbers (zeros run faster)."""
    source = torch.randn(COPY_ELEMENTS, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    a, b = torch.randn(2, PRODUCT_SIZE, PRODUCT_SIZE, dtype=torch.bfloat16, device=device)
    product = torch.empty_like(a)
    trials = {
        "copy": Trial(lambda: target.copy_(source)),
        "matmul": Trial(lambda: torch.mm(a, b, out=product)),
    }
    times = time_interleaved(trials, timer, seconds=0.2)
    copy, matmul = (spread(times[name].seconds).median for name in trials)
    return Ceilings(2 * source.nbytes / copy, 2 * PRODUCT_SIZE**3 / matmul)
