"""`make prove` without a GPU: it keeps to its time, and no failure stops the other stages."""

import contextlib
import itertools
from functools import partial
from unittest import mock

import pytest
import torch

from bench import results
from bench.prove import __main__ as prove
from bench.prove import compile
from bench.prove.stage import failed, no_time, passed, run_stage, work_through
from bench.prove.stages import step
from tests.bench.prove import stage

GPU = {"name": "NVIDIA H200", "torch": "2.11.0", "triton": "3.6.0"}
CEILINGS = {"copy_bytes_per_second": 4e12, "matmul_flops_per_second": 8e14}
ROW = dict.fromkeys(results.KEY, "x") | {"implementation": "triton"}
SIX = ("parity", "sanitize", "repeat", "ledger", "tune", "bench")


class Command:
    """`make prove` with fake stages, each of which takes the given share of its time."""

    def __init__(self, monkeypatch, folder, takes: float, outcomes=None):
        self.folder, self.takes, self.outcomes = folder, takes, outcomes or {}
        self.now, self.seconds, self.only, self.beside, self.saved = 0.0, {}, {}, [], []
        monkeypatch.setattr(prove, "run_stage", self.run)
        monkeypatch.setattr(prove, "beside", self.run_beside)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def run(self, module, seconds, log, only=()):
        name = module.rpartition(".")[2]
        self.seconds[name], self.only[name] = seconds, only
        self.saved.append(list(self.result()["stages"]))
        if name == "gpu":
            self.now += 10
            return self.outcomes.get("gpu", {"gpu": passed("copies", gpu=GPU, ceilings=CEILINGS)})
        self.now += self.takes * seconds
        return self.outcomes.get(name, {"a": passed("well"), "b": passed("well", rows=[ROW])})

    def run_beside(self, calls, seconds, log):
        self.beside += calls
        return contextlib.nullcontext()

    def __call__(self, *options):
        options = (f"--out={self.folder}", "--commit=abc", *options)
        return prove.main(list(options), clock=lambda: self.now)

    def result(self):
        paths = list(self.folder.glob("*.json"))
        return results.read(*paths) if paths else {"stages": {}}


@pytest.fixture
def command(monkeypatch, tmp_path):
    return partial(Command, monkeypatch, tmp_path)


def test_stages_share_the_time_and_what_others_leave(command):
    slow, stages = command(takes=1.0), f"--stages={','.join(SIX)}"
    assert slow(stages) == 0
    assert slow.now == pytest.approx(540)
    shares = [prove.STAGES[name].share for name in SIX]
    assert slow.seconds["parity"] == pytest.approx((540 - 10) * shares[0] / sum(shares))
    fast = command(takes=0.1)
    fast(stages)
    assert fast.seconds["parity"] == slow.seconds["parity"]
    assert fast.seconds["speed"] > 2 * slow.seconds["speed"]
    late = command(takes=1.5)
    late("--stages=parity,repeat,ledger")
    assert late.result()["stages"]["ledger"]["state"] == "no time"


def test_plan_compiles_ahead_and_selects_parts(command):
    plan = command(takes=0.5)
    plan()
    assert list(plan.result()["stages"]) == list(prove.PLAN)
    assert plan.beside[0] == (compile.compile_kernels,)
    assert plan.beside[1:] == [(compile.compile_step, part) for part in plan.only["step"]]
    assert plan.only["step"] == step.COMPILED
    named = command(takes=0.5)
    named("--stages=parity,repeat", "--only=attention", "--only=layer_norm")
    assert named.only["repeat"] == ["attention", "layer_norm"]
    assert named.beside == []


def test_every_kernel_of_the_plan_is_compiled_ahead():
    found = {one.kernel.fn.__name__ for one in compile.distinct(compile.launches(90))}
    assert found >= {  # of training steps, decode steps and timed operations
        *("attention_forward_kernel", "adamw_update_kernel", "decode_linear_kernel"),
        *("cross_entropy_backward_kernel", "gemm_kernel"),
    }


def test_parts_share_the_time_by_weight(monkeypatch):
    now, given, sent = [0.0], {}, mock.Mock()

    def work(part, seconds):
        given[part] = seconds
        now[0] += 0.5 * seconds
        return passed("well")

    monkeypatch.setattr(stage, "PARTS", {"a": 1, "b": 2, "c": 1})
    monkeypatch.setattr(stage, "work", work)
    work_through(stage.__name__, 80.0, [], [], sent, clock=lambda: now[0])
    assert given == {"a": 20, "b": pytest.approx(70 * 2 / 3), "c": pytest.approx(70 * 2 / 3)}
    ends = [((part, {}), (None, {part: passed("well")})) for part in "abc"]
    messages = [(None, dict.fromkeys("abc")), *itertools.chain(*ends)]
    assert [call.args[0] for call in sent.send.mock_calls] == messages


def test_results_are_saved_after_each_stage_and_a_failure_does_not_stop_the_others(command):
    wrong = {"x": passed("well"), "y": failed("7 of 250 runs differ")}
    stages = command(takes=0.5, outcomes={"repeat": wrong, "tune": {}})
    assert stages(f"--stages={','.join(SIX)}") == 1
    assert stages.saved == [[], *(list(SIX[:count]) for count in range(6))]
    found = stages.result()["stages"]
    assert list(found) == list(SIX)
    assert found["repeat"]["state"] == "failed"
    assert found["repeat"]["message"] == "y: 7 of 250 runs differ"
    assert found["tune"]["state"] == "failed"  # without parts it proves nothing


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(parts, seconds=60.0, only=()):
        monkeypatch.setenv("PARTS", parts)
        return run_stage(stage.__name__, seconds, tmp_path / "log", only)

    return run


def test_process_that_dies_fails_one_part(run):
    parts = run("one, first;raises;two;dies;differs")
    assert [part for part in parts if parts[part]["state"] == "passed"] == ["one, first", "two"]
    assert parts["raises"] == failed("ended with 1: RuntimeError: an illegal memory access")
    assert parts["dies"]["message"].startswith("ended with 7")
    assert parts["differs"] == failed("a bit differs")
    assert list(run("one;two, again;dies", only=["two, again"])) == ["two, again"]


def test_part_that_hangs_is_killed(run):
    parts = run("one;hangs;two", seconds=8.0)
    assert parts.pop("one")["state"] == "passed"
    assert parts == {"hangs": no_time(), "two": no_time()}


def test_stage_that_does_not_start_has_failed(tmp_path):
    parts = run_stage("tests.bench.no_such_stage", 60.0, tmp_path / "log")
    assert parts["no_such_stage"]["state"] == "failed"
    assert "No module named" in parts["no_such_stage"]["message"]


def test_without_a_working_gpu_no_stage_is_run(monkeypatch, capsys, command):
    broken = command(takes=1.0, outcomes={"gpu": {"gpu": failed("no CUDA driver")}})
    assert broken() == 1
    assert list(broken.seconds) == ["gpu"]
    assert "the GPU does not work: no CUDA driver" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert broken() == 2
    assert "needs a CUDA GPU" in capsys.readouterr().out


def test_unknown_stage_is_rejected(command, capsys):
    with pytest.raises(SystemExit):
        command(1.0)("--stages=parity,speling")
    assert "there is no stage speling; choose from profile, step" in capsys.readouterr().err


def test_runs_of_one_day_share_a_file(command, tmp_path, capsys):
    first, second, other = ({"median_us": value} for value in (1.0, 3.0, 2.0))
    rows = [ROW | first, ROW | other | {"implementation": "torch"}]
    for stages, measured in (("bench,sanitize", rows), ("bench", [ROW | second])):
        outcomes = {"speed": {"a": passed("", rows=measured)}, "sanitize": {"b": passed("")}}
        assert command(0, outcomes)(f"--stages={stages}") == 0
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


def test_results_of_another_version_or_schema_are_not_merged(tmp_path):
    earlier = {"gpu": GPU, "stages": {}, "rows": [ROW]}
    later = {"gpu": GPU | {"torch": "2.13.0"}, "stages": {}, "rows": []}
    assert results.merge(earlier, later) == later
    (tmp_path / "result.json").write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="schema 99 instead of 2"):
        results.read(tmp_path / "result.json")


def test_commit_is_unknown_without_git(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert results.commit() == "unknown"
