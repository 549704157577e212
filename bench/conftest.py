"""`pytest bench`: every operation against its rivals, by pytest-benchmark.

The rivals of one operation, shape and pass are timed in turns (`bench/timer.py`); each then
reports what was measured of it through pytest-benchmark, in one group. `extra_info` of the JSON
holds the row of figures that `bench.report` prints. Nothing here runs in a plain `pytest`.
"""

import gc
import time

import pytest
import torch

from bench import baselines, results_file, workloads
from bench.compare import Failed, Race, attempt, row
from bench.prove.stages.speed import CONTEXT_LOST
from bench.timer import Replay, measure_ceilings, stopwatch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOCK = Replay()


def pytest_addoption(parser):
    group = parser.getgroup("gpt-kernels")
    group.addoption("--operation", action="append", help="only this operation (may be repeated)")
    group.addoption("--minutes", type=float, help="start no further measurement after this long")


def pytest_configure(config):
    config.option.benchmark_columns = ["median", "iqr", "rounds"]
    config.option.benchmark_sort = "median"
    if DEVICE.type == "cpu":
        torch.set_num_threads(1)  # threads that wait for each other measure whoever else is busy
    config.stash[LAP] = Lap(config.getoption("--minutes"))


def pytest_report_header():
    if DEVICE.type == "cuda":
        return f"bench: {torch.cuda.get_device_name()}"
    return "bench: no CUDA card here, so PyTorch against the spelled-out reference, by wall clock"


def pytest_generate_tests(metafunc):
    if "entry" not in metafunc.fixturenames:
        return
    wanted = metafunc.config.getoption("--operation")
    entries = [
        (case, direction, rival)
        for case in workloads.cases(DEVICE)
        if not wanted or case.operation in wanted
        for direction in workloads.passes(case)
        for rival in baselines.rivals(case, DEVICE)
    ]
    metafunc.parametrize(
        "entry",
        [
            pytest.param(
                (case, direction, rival),
                marks=pytest.mark.benchmark(group=_group(case, direction), timer=CLOCK),
                id=f"{_group(case, direction)} {rival}",
            )
            for case, direction, rival in entries
        ],
    )


def _group(case, direction: str) -> str:
    return f"{case.operation} {workloads.shape(case)} {case.precision} {direction}"


class Lap:
    """The race that is being run: made when its first entry comes, dropped with its last."""

    def __init__(self, minutes: float | None):
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.watch = self.ceilings = self.race = self.case = None
        self.results: dict[str, dict] = {}  # pass -> rival -> Samples or Failed

    def of(self, case, direction: str, rivals: list[str]) -> dict:
        if self.case is not case:
            self._begin(case, rivals)
        if direction not in self.results:
            if self.deadline is not None and time.monotonic() > self.deadline:
                pytest.skip("no time is left of --minutes")
            self.results[direction] = self.race.run(direction)
        return self.results[direction]

    def _begin(self, case, rivals: list[str]) -> None:
        self.race, self.case, self.results = None, case, {}  # the last race's tensors go first
        gc.collect()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
        if self.watch is None:
            self.watch = stopwatch(DEVICE)
            if DEVICE.type == "cuda":
                self.ceilings = measure_ceilings(DEVICE, self.watch)
        makers = baselines.rivals(case, DEVICE)
        torch.manual_seed(0)
        self.race = Race(case, {name: makers[name] for name in rivals}, DEVICE, self.watch)


LAP = pytest.StashKey[Lap]()


@pytest.fixture
def measure(request, benchmark):
    """Measure an entry and report it; the first of a group to be called measures the group."""

    def measure(case, direction, rival):
        maker = baselines.rivals(case, DEVICE)[rival]
        if isinstance(maker, str):
            pytest.skip(f"{rival}: {maker}")
        lap = request.config.stash[LAP]
        result = lap.of(case, direction, _rivals_of(request.session, case, direction))[rival]
        if isinstance(result, Failed):
            _report_failure(rival, result)
        figures_of_it = row(case, direction, rival, result, lap.ceilings)
        if DEVICE.type == "cuda" and direction == workloads.passes(case)[-1]:  # of the whole
            named = attempt(lap.race.kernels, rival, direction)
            figures_of_it["kernels"] = [] if isinstance(named, Failed) else named
            figures_of_it["peak_mb"] = round(lap.race.peak_bytes(rival, direction) / 1e6, 1)
        benchmark.extra_info.update(figures_of_it)
        seconds = iter(result.seconds)
        benchmark.pedantic(
            CLOCK.advance, setup=lambda: ((next(seconds),), {}), rounds=len(result.seconds)
        )

    return measure


def _rivals_of(session, case, direction: str) -> list[str]:
    """The rivals of a group that were asked for and can be made here."""
    entries = [item.callspec.params["entry"] for item in session.items if hasattr(item, "callspec")]
    makers = baselines.rivals(case, DEVICE)
    return [
        rival
        for of_case, of_direction, rival in entries
        if of_case is case and of_direction == direction and not isinstance(makers[rival], str)
    ]


def _report_failure(rival: str, failed: Failed) -> None:
    if DEVICE.type == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            pytest.exit(f"{rival} has lost the card: {failed.reason}", returncode=CONTEXT_LOST)
    if rival == baselines.OURS:
        pytest.fail(failed.details, pytrace=False)
    pytest.skip(f"{rival} cannot: {failed.reason}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("default"))  # peers warn, and may


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """The card and its ceilings, and no single samples: the file stays small."""
    lap = config.stash[LAP]
    if lap.ceilings is not None:
        output_json["machine_info"]["card"] = results_file.card()
        output_json["machine_info"]["ceilings"] = lap.ceilings._asdict()
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
