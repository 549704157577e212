"""`pytest bench`: times every operation against its baselines with pytest-benchmark.

The implementations of one operation, shape and pass are timed in turn (`bench/timer.py`). Each then
reports its times through pytest-benchmark, in one group, whose table has the ratios. `extra_info`
in the JSON is a row of the result file. `-k attention` selects by name.
"""

import pytest
import torch

from bench.baselines import OURS, implementations
from bench.compare import Comparison, Failed, row
from bench.timer import timer_and_ceilings
from bench.workloads import timed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.filterwarnings("default")  # peers' warnings are not errors


def pytest_generate_tests(metafunc):
    parameters = []
    for case in timed.GPU if DEVICE.type == "cuda" else timed.CPU:
        for direction in timed.passes(case):
            group = f"{case.operation} {timed.shape(case)} {case.precision} {direction}"
            mark = pytest.mark.benchmark(group=group)
            for name in implementations(case, DEVICE):
                values = (case, direction, name)
                parameters.append(pytest.param(*values, marks=mark, id=f"{group} {name}"))
    metafunc.parametrize(("case", "direction", "name"), parameters)


@pytest.fixture(scope="module")
def measured() -> dict:
    """The case in work, its comparison, and the samples of each pass."""
    return {}


def test_speed(case, direction, name, measured, benchmark):
    makers = implementations(case, DEVICE)
    if isinstance(reason := makers[name], str):
        pytest.skip(f"{name}: {reason}")
    timer, ceilings = timer_and_ceilings(DEVICE)
    if measured.get("case") is not case:
        measured.clear()
        measured |= {"case": case, "comparison": Comparison(case, makers, DEVICE, timer)}
    if direction not in measured:
        measured[direction] = measured["comparison"].run(direction)
    if isinstance(one := measured[direction][name], Failed):
        if name == OURS:
            pytest.fail(one.reason, pytrace=False)
        pytest.skip(f"{name} failed: {one.reason}")
    benchmark.extra_info |= row(case, direction, name, one, ceilings)
    benchmark.pedantic(lambda: None)
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.stats.stats.data[:] = one.seconds
