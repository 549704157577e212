"""`pytest bench`: times every operation against its baselines with pytest-benchmark.

The implementations of one operation, shape and pass are timed in turn (`bench/timer.py`). Each then
reports its times through pytest-benchmark, in one group, whose table has the ratios. `extra_info`
in the JSON is a row of the result file.
"""

import functools
import gc
import math
import time

import pytest
import torch

from bench import baselines
from bench.compare import Comparison, Failed
from bench.timer import Ceilings, HostTimer, Samples, make_timer, measure_ceilings
from bench.workloads import timed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_addoption(parser):
    add = parser.getgroup("gpt-kernels").addoption
    add("--operation", action="append", help="only this operation (repeatable)")
    add("--minutes", type=float, default=math.inf, help="start no measurement after this time")


def pytest_configure(config):
    config.option.benchmark_columns = ["median", "iqr", "rounds"]
    config.option.benchmark_sort = "median"
    if DEVICE.type == "cpu":
        torch.set_num_threads(1)  # more threads would measure the load of the other cores


def pytest_generate_tests(metafunc):
    selected = metafunc.config.getoption("--operation")
    parameters = []
    for case in timed.GPU if DEVICE.type == "cuda" else timed.CPU:
        if selected and case.operation not in selected:
            continue
        for direction in timed.passes(case):
            group = f"{case.operation} {timed.shape(case)} {case.precision} {direction}"
            mark = pytest.mark.benchmark(group=group)
            for name in baselines.implementations(case, DEVICE):
                values = (case, direction, name)
                parameters.append(pytest.param(*values, marks=mark, id=f"{group} {name}"))
    metafunc.parametrize(("case", "direction", "name"), parameters)


@functools.cache
def timer_and_ceilings() -> tuple[HostTimer, Ceilings | None]:
    timer = make_timer(DEVICE)
    return timer, measure_ceilings(timer) if DEVICE.type == "cuda" else None


class Session:
    """The comparison of the current case, and what it has measured."""

    case = comparison = None

    def __init__(self, minutes: float):
        self.deadline = time.monotonic() + 60 * minutes

    def samples(self, case, direction: str) -> dict[str, Samples | Failed]:
        if self.case is not case:
            self.comparison, self.case, self.measured = None, case, {}
            gc.collect()  # the tensors of the last comparison
            torch.cuda.empty_cache()
            timer, _ = timer_and_ceilings()
            makers = baselines.implementations(case, DEVICE).items()
            makers = {name: maker for name, maker in makers if not isinstance(maker, str)}
            torch.manual_seed(0)
            self.comparison = Comparison(case, makers, DEVICE, timer)
        if direction not in self.measured:
            if time.monotonic() > self.deadline:
                pytest.skip("the time of --minutes is over")
            self.measured[direction] = self.comparison.run(direction)
        return self.measured[direction]


@pytest.fixture(scope="session")
def session(pytestconfig) -> Session:
    return Session(pytestconfig.getoption("--minutes"))
