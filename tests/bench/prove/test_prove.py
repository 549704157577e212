"""`make prove` without a GPU: it keeps to its time, and no failure stops the other stages."""

import contextlib
import json
import subprocess
import sys
from functools import partial

import pytest
import torch
import triton

from bench import results
from bench.prove import __main__ as prove
from bench.prove.run import run_stage
from bench.prove.stage import failed, no_time, passed, work_through
from bench.prove.stages import ledger, parity, repeat, sanitize, speed, step
from bench.prove.stages.tune import neighbours
from kernels.common import launch

GPU = {"name": "NVIDIA H200", "torch": "2.11.0", "triton": "3.6.0"}
CEILINGS = {"copy_bytes_per_second": 4e12, "matmul_flops_per_second": 8e14}
ROW = dict.fromkeys(results.KEY, "x") | {"implementation": "triton"}
SIX = ("parity", "sanitize", "repeat", "ledger", "tune", "bench")


class FakeStages:
    """Replaces the processes of stages; each takes the given share of its time."""

    def __init__(self, monkeypatch, takes: float, outcomes=None):
        self.takes, self.outcomes = takes, outcomes or {}
        self.now, self.seconds, self.arguments = 0.0, {}, {}
        monkeypatch.setattr(prove, "run_stage", self.run)
        monkeypatch.setattr(prove, "beside", self.beside)

    def run(self, module, seconds, log, arguments=()):
        name = module.rpartition(".")[2]
        self.seconds[name], self.arguments[name] = seconds, arguments
        if name == "gpu":
            self.now += 10
            return self.outcomes.get("gpu", {"gpu": passed("copies", gpu=GPU, ceilings=CEILINGS)})
        self.now += self.takes * seconds
        return self.outcomes.get(name, {"a": passed("well"), "b": passed("well", rows=[ROW])})

    def beside(self, module, seconds, log, arguments):
        self.arguments.setdefault("beside", []).extend(arguments)
        return contextlib.nullcontext()

    def prove(self, stages=SIX, save=lambda result: None, only=()):
        return prove.prove(list(stages), 540.0, None, save, only, clock=lambda: self.now)


@pytest.fixture
def fake(monkeypatch):
    return partial(FakeStages, monkeypatch)


def test_stages_share_the_time_and_what_others_leave(fake):
    slow = fake(takes=1.0)
    assert list(slow.prove()["stages"]) == list(SIX)
    assert slow.now == pytest.approx(540)
    shares = [prove.STAGES[name].share for name in SIX]
    assert slow.seconds["parity"] == pytest.approx((540 - 10) * shares[0] / sum(shares))
    fast = fake(takes=0.1)
    fast.prove()
    assert fast.seconds["parity"] == slow.seconds["parity"]
    assert fast.seconds["speed"] > 2 * slow.seconds["speed"]
    late = fake(takes=1.5).prove(["parity", "repeat", "ledger"])
    assert late["stages"]["ledger"]["state"] == "no time"


def test_plan_compiles_ahead_and_selects_parts(fake):
    stages = fake(takes=0.5)
    assert list(stages.prove(prove.PLAN)["stages"]) == list(prove.PLAN)
    assert stages.arguments["beside"] == ["--only=kernels", "--only=torch.compile"]
    assert stages.arguments["step"] == [f"--only={part}" for part in step.COMPILED]
    stages.prove(only=["attention", "layer_norm"])
    assert stages.arguments["repeat"] == ["--only=attention", "--only=layer_norm"]
    assert stages.arguments["parity"] == []


def test_parts_share_the_time_by_weight(tmp_path):
    now, given = [0.0], {}

    def work(part, seconds):
        given[part] = seconds
        now[0] += 0.5 * seconds
        return passed("well")

    report = tmp_path / "report"
    work_through({"a": 1, "b": 2, "c": 1}, work, 80.0, report, clock=lambda: now[0])
    assert given == {"a": 20, "b": pytest.approx(70 * 2 / 3), "c": pytest.approx(70 * 2 / 3)}
    assert json.loads(report.read_text()) == dict.fromkeys("abc", passed("well"))


def test_results_are_saved_after_each_stage_and_a_failure_does_not_stop_the_others(fake):
    wrong = {"x": passed("well"), "y": failed("7 of 250 runs differ")}
    saved = []
    stages = fake(takes=0.5, outcomes={"repeat": wrong, "tune": {}})
    result = stages.prove(save=lambda result: saved.append(list(result["stages"])))
    assert saved == [list(SIX[:count]) for count in range(1, 7)]
    assert result["stages"]["repeat"]["state"] == "failed"
    assert result["stages"]["repeat"]["message"] == "y: 7 of 250 runs differ"
    assert result["stages"]["tune"]["state"] == "failed"  # without parts it proves nothing
    assert result["rows"] == [ROW] * 4


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(parts, seconds=60.0, arguments=()):
        monkeypatch.setenv("PARTS", parts)
        return run_stage("tests.bench.prove.stage", seconds, tmp_path / "log", list(arguments))

    return run


def test_process_that_dies_fails_one_part(run, tmp_path):
    parts = run("one, first;raises;two;dies;differs;left out", arguments=["--skip=left out"])
    assert [part for part in parts if parts[part]["state"] == "passed"] == ["one, first", "two"]
    assert parts["raises"] == failed("ended with 1: RuntimeError: an illegal memory access")
    assert parts["dies"]["state"] == "failed"
    assert parts["differs"] == failed("a bit differs")
    assert "illegal memory access" in (tmp_path / "log").read_text()
    assert list(run("one;two, again;dies", arguments=["--only=two, again"])) == ["two, again"]


def test_part_that_hangs_is_killed(run):
    parts = run("one;hangs;two", seconds=8.0)
    assert parts["one"]["state"] == "passed"
    assert parts["hangs"] == no_time()


def test_stage_that_does_not_start_has_failed(tmp_path):
    parts = run_stage("tests.bench.no_such_stage", 60.0, tmp_path / "log")
    assert parts["no_such_stage"]["state"] == "failed"
    assert "No module named" in parts["no_such_stage"]["message"]


def test_without_a_working_gpu_no_stage_is_run(monkeypatch, capsys, tmp_path, fake):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert prove.main(["--out", str(tmp_path / "out")]) == 2
    assert "needs a CUDA GPU" in capsys.readouterr().out
    broken = failed("no CUDA driver")
    result = fake(takes=1.0, outcomes={"gpu": {"gpu": broken}}).prove()
    assert result == {"stages": {"gpu": broken}, "rows": []}


def test_unknown_stage_is_rejected(capsys):
    with pytest.raises(SystemExit):
        prove.main(["--stages", "parity,speling"])
    assert "'speling' is not one of profile, step" in capsys.readouterr().err


def test_runs_of_one_day_share_a_file(monkeypatch, tmp_path, fake, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    first, second, other = ({"median_us": value} for value in (1.0, 3.0, 2.0))
    rows = [ROW | first, ROW | other | {"implementation": "torch"}]
    for stages, measured in (("bench,sanitize", rows), ("bench", [ROW | second])):
        outcomes = {"speed": {"a": passed("", rows=measured)}, "sanitize": {"b": passed("")}}
        fake(0, outcomes)
        options = ["--out", str(tmp_path), "--commit", "abc", "--stages", stages]
        assert prove.main(options) == 0
    (path,) = tmp_path.glob("*.json")
    result = results.read(path)
    assert path.name == f"nvidia-h200-{result['date']}.json"
    assert (result["gpu"], result["ceilings"]) == (GPU, CEILINGS)
    assert list(result["stages"]) == ["bench", "sanitize"]
    measured = [(row["implementation"], row["median_us"]) for row in result["rows"]]
    assert measured == [("triton", 3.0), ("torch", 2.0)]
    for part in (*result["stages"].values(), *result["rows"]):
        assert (part["commit"], part["date"]) == ("abc", result["date"])
    assert capsys.readouterr().out.splitlines()[-1] == str(path)


def test_results_of_another_version_are_dropped():
    earlier = {"gpu": GPU, "stages": {}, "rows": [ROW]}
    later = {"gpu": GPU | {"torch": "2.13.0"}, "stages": {}, "rows": []}
    assert results.merge(earlier, later) == later


def test_unknown_schema_is_rejected(tmp_path):
    path = tmp_path / "result.json"
    path.write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="schema 99 instead of 2"):
        results.read(path)


def test_commit_is_unknown_without_git(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert results.commit() == "unknown"


def test_sanitizer_fails_for_errors_in_our_kernels():
    def judge(report, count):
        ours = "our kernels: _backward _forward"
        return sanitize.judge(f"{report}\n{ours}\n=== ERROR SUMMARY: {count} errors\n", 1)

    assert judge("", 0) == passed("2 kernels")
    assert judge("===     at _forward+0x1f0", 3) == failed("3 errors in _forward")
    others = judge("===     at void at::native::fill<float>+0x10", 1)
    assert others == passed("2 kernels; 1 reports, all in other kernels")
    race = "our kernels: _forward\n=== Write Thread (0,0,0) at _forward+0x90\n"
    race += "=== RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)"
    assert sanitize.judge(race, 1) == failed("2 errors in _forward")
    assert sanitize.judge("boom\n", 1) == failed("ended with 1: boom")


def test_parity_fails_unless_tests_pass():
    ran = [("t::a", "passed", ""), ("t::b", "skipped", "no"), ("t::c", "passed", "")]
    assert parity.judge(ran, 0) == passed("2 passed, 1 skipped")
    wrong = parity.judge([*ran, ("t::d", "failed", "t.py:3\nE   assert 1 == 2\nt.py:3: E")], 1)
    assert (wrong["state"], wrong["lines"]) == ("failed", ["t::d: assert 1 == 2"])
    assert parity.judge(ran, 2)["state"] == "failed"  # interrupted
    assert parity.judge(ran, None) == no_time("2 passed, 1 skipped before the time was over")
    assert parity.judge([("t::b", "skipped", "no")], 0)["state"] == "failed"


def test_bench_keeps_what_was_measured_before_a_failure():
    assert speed.judge("attention", [ROW], 0)["state"] == "passed"
    broken = speed.judge("attention", [ROW], 1)
    assert (broken["state"], broken["rows"]) == ("failed", [ROW])
    assert speed.judge("attention", [], 0) == no_time()


def test_loaded_kernels_are_compared_with_the_ledger(monkeypatch, tmp_path):
    numbers = {"registers": 40, "spills": 0, "shared": 1024}
    key = "layer_norm_forward_kernel() C=768"
    row = {"target": "80", "key": key} | numbers
    path = tmp_path / "ledger.json"
    path.write_text(json.dumps({triton.__version__: [row | {"architectures": [80, 86]}]}))
    loaded = {key: row}
    monkeypatch.setattr(ledger, "COMMITTED", path)
    monkeypatch.setattr(ledger, "loaded_kernels", lambda case: loaded)
    with launch.target(86):
        assert ledger.work("layer_norm", 1.0)["state"] == "passed"
        loaded[key] = row | {"registers": 41}
        loaded["new"] = row | {"key": "new"}
        wrong = ledger.work("layer_norm", 1.0)
        assert wrong["lines"] == [f"80 {key}: registers 40 -> 41", "80 new: is new"]
        assert wrong["state"] == "failed"
        path.write_text(json.dumps({"0.0.1": []}))
        assert ledger.work("layer_norm", 1.0)["state"] == "not available"


def test_repeat_compares_bits():
    x = torch.tensor([float("nan"), 0.0], dtype=torch.bfloat16)
    y = torch.tensor([float("nan"), -0.0], dtype=torch.bfloat16)
    assert torch.equal(repeat.bits(x), repeat.bits(x.clone()))
    assert not torch.equal(repeat.bits(x), repeat.bits(y))


def test_neighbours_of_a_tile_differ_in_one_number():
    assert neighbours((64, 8)) == [(32, 8), (128, 8), (64, 4), (64, 16)]
    assert neighbours(3) == [1, 2, 4, 6]
    assert neighbours({64: (128, True)}) == [{64: (64, True)}, {64: (256, True)}]


WITHOUT_PACKAGES = """
import importlib, sys
for name in "pytest xdist pytest_benchmark hypothesis tqdm matplotlib safetensors tiktoken".split():
    sys.modules[name] = None
from bench.prove.__main__ import STAGE, STAGES
for name, stage in STAGES.items():
    try:
        importlib.import_module(STAGE + stage.module)
    except ModuleNotFoundError as error:
        print(name, error.name)
"""


def test_missing_package_affects_only_the_stage_that_needs_it():
    command = [sys.executable, "-c", WITHOUT_PACKAGES]
    printed = subprocess.check_output(command, cwd=results.REPOSITORY, text=True)
    assert printed.splitlines() == ["bench pytest"]
