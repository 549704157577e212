"""`pytest bench`: times every operation against its baselines with pytest-benchmark.

The implementations of one operation, shape and pass are timed in turn (`bench/timer.py`) when the
first of them is called. Each then reports its times through pytest-benchmark, in one group, whose
table has the ratios. `extra_info` in the JSON is a row of the result file. A plain `pytest` does
not run these tests.
"""

import gc
import time

import pytest
import torch

from bench import baselines, results
from bench.compare import Comparison, Failed, row
from bench.prove.stages.parity import CONTEXT_LOST
from bench.timer import make_timer, measure_ceilings
from bench.workloads import timed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class RecordedClock:
    """A timer for pytest-benchmark that advances by measured seconds only."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = RecordedClock()


def pytest_addoption(parser):
    group = parser.getgroup("gpt-kernels")
    group.addoption("--operation", action="append", help="only this operation (repeatable)")
    group.addoption("--minutes", type=float, help="start no further measurement after this time")


def pytest_configure(config):
    config.option.benchmark_columns = ["median", "iqr", "rounds"]
    config.option.benchmark_sort = "median"
    if DEVICE.type == "cpu":
        torch.set_num_threads(1)  # more threads would measure the load of the other cores
    config.stash[SESSION] = Session(config.getoption("--minutes"))


def pytest_report_header():
    if DEVICE.type == "cuda":
        return f"bench: {torch.cuda.get_device_name()}"
    return "bench: no CUDA GPU, so PyTorch against the reference by wall clock"


def pytest_generate_tests(metafunc):
    if "entry" not in metafunc.fixturenames:
        return
    selected = metafunc.config.getoption("--operation")
    parameters = []
    for case in timed.cases(DEVICE):
        if selected and case.operation not in selected:
            continue
        for direction in timed.passes(case):
            group = f"{case.operation} {timed.shape(case)} {case.precision} {direction}"
            mark = pytest.mark.benchmark(group=group, timer=CLOCK)
            for name in baselines.implementations(case, DEVICE):
                entry = (case, direction, name)
                parameters.append(pytest.param(entry, marks=mark, id=f"{group} {name}"))
    metafunc.parametrize("entry", parameters)


class Session:
    """The current comparison, replaced when the first entry of another case is called."""

    def __init__(self, minutes: float | None):
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.timer = self.ceilings = self.comparison = self.case = None
        self.measured: dict[str, dict] = {}  # pass -> implementation -> Samples or Failed

    def measure(self, case, direction: str) -> dict:
        if self.case is not case:
            self._start(case)
        if direction not in self.measured:
            if self.deadline is not None and time.monotonic() > self.deadline:
                pytest.skip("the time of --minutes is over")
            self.measured[direction] = self.comparison.run(direction)
        return self.measured[direction]

    def _start(self, case) -> None:
        self.comparison, self.case, self.measured = None, case, {}
        gc.collect()  # the tensors of the last comparison
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
        if self.timer is None:
            self.timer = make_timer(DEVICE)
            if DEVICE.type == "cuda":
                self.ceilings = measure_ceilings(DEVICE, self.timer)
        found = baselines.implementations(case, DEVICE).items()
        makers = {name: maker for name, maker in found if not isinstance(maker, str)}
        torch.manual_seed(0)
        self.comparison = Comparison(case, makers, DEVICE, self.timer)


SESSION = pytest.StashKey[Session]()


@pytest.fixture
def measure(request, benchmark):
    """Measure an entry and report it through pytest-benchmark."""

    def measure(case, direction, name):
        maker = baselines.implementations(case, DEVICE)[name]
        if isinstance(maker, str):
            pytest.skip(f"{name}: {maker}")
        session = request.config.stash[SESSION]
        samples = session.measure(case, direction)[name]
        if isinstance(samples, Failed):
            _report_failure(name, samples)
        result = row(case, direction, name, samples, session.ceilings)
        if DEVICE.type == "cuda" and direction == timed.passes(case)[-1]:
            result["peak_mb"] = round(session.comparison.peak_bytes(name, direction) / 1e6, 1)
        benchmark.extra_info.update(result)
        seconds = iter(samples.seconds)
        benchmark.pedantic(
            CLOCK.advance, setup=lambda: ((next(seconds),), {}), rounds=len(samples.seconds)
        )

    return measure


def _report_failure(name: str, failed: Failed) -> None:
    if DEVICE.type == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            pytest.exit(f"{name} broke the CUDA context: {failed.reason}", returncode=CONTEXT_LOST)
    if name == baselines.OURS:
        pytest.fail(failed.details, pytrace=False)
    pytest.skip(f"{name} failed: {failed.reason}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("default"))  # peers' warnings are not errors


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Add the GPU and its ceilings, and drop the single samples to keep the file small."""
    session = config.stash[SESSION]
    if session.ceilings is not None:
        output_json["machine_info"]["gpu"] = results.gpu()
        output_json["machine_info"]["ceilings"] = session.ceilings._asdict()
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
