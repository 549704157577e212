"""`make prove` without a card: it keeps to its minutes, and nothing that fails stops the rest."""

import json
import subprocess
import sys
import time

import pytest
import torch
import triton

from bench import results_file, workloads
from bench.cases import Case
from bench.prove import __main__ as prove
from bench.prove.stages import (
    failed,
    ledger,
    no_time,
    parity,
    passed,
    repeat,
    sanitize,
    sanitizer_workload,
    speed,
    step,
    work_through,
    worst,
)
from bench.prove.stages.tune import neighbours
from bench.workloads import GPT2_64K
from kernels.common import launch

CARD = {
    "name": "NVIDIA H200",
    "capability": "9.0",
    "driver": "580.1",
    "torch": "2.11.0",
    "triton": "3.6.0",
}
CEILINGS = {"copy_bytes_per_second": 4e12, "matmul_flops_per_second": 8e14}
ROW = {"operation": "o", "shape": "s", "precision": "bf16", "pass": "both", "rival": "triton"}


class Card:
    """Stands for `run_stage`: each stage takes the share of its allowance that it is told to."""

    def __init__(self, takes: float, outcomes=None):
        self.takes, self.outcomes = takes, outcomes or {}
        self.now, self.allowances, self.arguments = 0.0, {}, {}

    def clock(self):
        return self.now

    def run(self, module, seconds, log, arguments):
        name = module.rpartition(".")[2]
        self.allowances[name], self.arguments[name] = seconds, arguments
        if name == "card":
            self.now += 10
            card = passed("copies", card=CARD, ceilings=CEILINGS)
            return self.outcomes.get("card", {"card": card})
        self.now += self.takes * seconds
        return self.outcomes.get(name, {"a": passed("well"), "b": passed("well", rows=[ROW])})


SIX = ("parity", "sanitize", "repeat", "ledger", "tune", "bench")


def test_what_was_found_is_kept_after_each_stage():
    kept = []
    _prove(
        Card(takes=1.0), ["parity", "ledger"], keep=lambda found: kept.append([*found["stages"]])
    )
    assert kept == [["parity"], ["parity", "ledger"]]


def _prove(card, stages=SIX, seconds=540.0, **options):
    return prove.prove(list(stages), seconds, None, card.run, clock=card.clock, **options)


# --- time -----------------------------------------------------------------------------------------


def test_all_stages_together_stay_within_the_minutes():
    card = Card(takes=1.0)
    result = _prove(card)
    assert card.now == pytest.approx(540)
    assert list(result["stages"]) == list(SIX)
    shares = [prove.STAGES[name].share for name in SIX]
    parity_seconds = card.allowances["parity"]
    assert parity_seconds == pytest.approx((540 - 10) * shares[0] / sum(shares))


def test_time_that_a_stage_leaves_goes_to_those_after_it():
    hasty, slow = Card(takes=0.1), Card(takes=1.0)
    _prove(hasty)
    _prove(slow)
    assert hasty.allowances["parity"] == slow.allowances["parity"]
    assert hasty.allowances["speed"] > 2 * slow.allowances["speed"]
    assert hasty.now < 540


def test_a_stage_for_which_no_time_is_left_says_so():
    result = _prove(Card(takes=1.5), stages=["parity", "repeat", "ledger"])
    assert [result["stages"][name]["state"] for name in ("repeat", "ledger")][1] == "no time"


def test_the_plan_compiles_ahead_and_each_stage_has_its_parts():
    card = Card(takes=0.5)
    result = _prove(card, prove.PLAN)
    assert {"compile", "warm"} <= card.allowances.keys()
    parts = card.arguments["step"]  # of both stages that this module computes, the later one's
    assert parts == [f"--only={part}" for part in step.COMPILED]
    assert card.arguments["parity"] == [f"--only={part}" for part in parity.FIRST]
    assert list(result["stages"]) == list(prove.PLAN)
    assert "warm" not in _prove(Card(takes=0.5), ["parity"])["stages"]


def test_one_stage_alone_gets_all_the_time():
    card = Card(takes=1.0)
    _prove(card, stages=["bench"])
    assert card.allowances["speed"] == pytest.approx(530)


def test_only_reaches_the_stages_that_go_by_operations():
    card = Card(takes=0.1)
    _prove(card, only=["attention", "layer_norm"])
    assert card.arguments["repeat"] == ["--only=attention", "--only=layer_norm"]
    assert card.arguments["parity"] == []


# --- failure --------------------------------------------------------------------------------------


def test_a_stage_that_fails_is_reported_and_the_next_one_runs():
    wrong = {"x": passed("well"), "y": failed("7 of 250 runs differ")}
    result = _prove(Card(takes=0.5, outcomes={"repeat": wrong}))
    assert result["stages"]["repeat"]["state"] == "failed"
    assert result["stages"]["repeat"]["says"] == "y: 7 of 250 runs differ"
    assert result["stages"]["ledger"]["state"] == "passed"
    assert result["rows"] == [ROW] * 5  # what the other stages have measured is kept


def test_a_card_that_does_not_work_ends_it():
    card = Card(takes=1.0, outcomes={"card": {"card": failed("no CUDA driver")}})
    result = _prove(card)
    assert result == {"stages": {"card": failed("no CUDA driver")}, "rows": []}


def _run_stage(monkeypatch, tmp_path, parts, seconds=30.0, arguments=()):
    monkeypatch.setenv("PARTS", parts)
    return prove.run_stage("tests.bench.prove.stage", seconds, tmp_path / "log", list(arguments))


def test_a_process_that_dies_takes_one_part_with_it(monkeypatch, tmp_path):
    parts = _run_stage(monkeypatch, tmp_path, "one, first;raises;two;dies;differs")
    assert [part for part in parts if parts[part]["state"] == "passed"] == ["one, first", "two"]
    assert parts["raises"] == failed("ended with 1: RuntimeError: an illegal memory access")
    assert parts["dies"]["state"] == "failed"
    assert parts["differs"] == failed("a bit differs")
    assert "illegal memory access" in (tmp_path / "log").read_text()


def test_a_part_that_hangs_is_ended_in_time_with_all_that_it_started(monkeypatch, tmp_path):
    start = time.monotonic()
    parts = _run_stage(monkeypatch, tmp_path, "one;hangs;two", seconds=4.0)
    assert time.monotonic() - start < 20
    assert parts["one"]["state"] == "passed"
    assert parts["hangs"] == no_time()


def test_an_interrupt_ends_what_runs_beside(monkeypatch, tmp_path):
    monkeypatch.setenv("PARTS", "hangs;two")
    found, start = [], time.monotonic()

    def interrupted():
        beside = "tests.bench.prove.stage", 60.0, tmp_path / "log"
        with prove.beside(prove.run_stage, *beside) as outcomes:
            found.append(outcomes)
            while not prove._running:
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - start < 20
    assert "two" not in found[0]  # nothing was begun after it


def test_a_stage_that_cannot_begin_has_failed(tmp_path):
    parts = prove.run_stage("tests.bench.no_such_stage", 30.0, tmp_path / "log", [])
    assert parts["no_such_stage"]["state"] == "failed"
    assert "No module named" in parts["no_such_stage"]["says"]


def test_a_stage_works_on_the_parts_that_are_asked_for(monkeypatch, tmp_path):
    only = ["--only=two, again"]
    parts = _run_stage(monkeypatch, tmp_path, "one;two, again;dies", arguments=only)
    assert list(parts) == ["two, again"]


def test_parts_share_the_time_by_their_weights(tmp_path):
    now, given = [0.0], {}

    def work(part, seconds):
        given[part] = seconds
        now[0] += 0.5 * seconds
        return passed("well")

    arguments = ["--seconds", "80", "--report", str(tmp_path / "report")]
    work_through({"a": 1, "b": 2, "c": 1}, work, arguments, clock=lambda: now[0])
    assert given == {"a": 20, "b": pytest.approx(70 * 2 / 3), "c": pytest.approx(70 * 2 / 3)}
    report = json.loads((tmp_path / "report").read_text())
    assert report["at"] is None
    assert list(report["parts"]) == ["a", "b", "c"]


def test_the_worst_part_names_the_state():
    assert worst([passed(""), no_time()]) == "no time"
    assert worst([no_time(), failed(""), passed("")]) == "failed"
    assert worst([]) == "failed"  # a stage without a part has proved nothing


# --- the command and its file ---------------------------------------------------------------------


def test_without_a_card_it_says_so_and_exits_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert prove.main(["--out", str(tmp_path / "out")]) == 2
    assert "needs a CUDA GPU" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argument", "value", "says"),
    [("--stages", "parity,speling", "'speling' is no stage"), ("--only", "softmax", "is none of")],
)
def test_an_unknown_name_is_refused_with_those_that_are_known(argument, value, says, capsys):
    with pytest.raises(SystemExit):
        prove.main([argument, value])
    assert says in capsys.readouterr().err


def _command(monkeypatch, tmp_path, card, *arguments):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(prove, "run_stage", card.run)
    return prove.main(["--out", str(tmp_path), "--commit", "abc", *arguments])


def test_one_file_holds_the_card_the_ceilings_the_stages_and_every_row(
    monkeypatch, tmp_path, capsys
):
    assert _command(monkeypatch, tmp_path, Card(takes=0)) == 0
    (path,) = tmp_path.glob("*.json")
    result = results_file.read(path)
    assert path.name == f"nvidia-h200-{result['date']}.json"
    assert result["card"] == CARD
    assert result["ceilings"] == CEILINGS
    assert list(result["stages"]) == list(prove.PLAN)
    for part in (*result["stages"].values(), *result["rows"]):
        assert (part["commit"], part["date"]) == ("abc", result["date"])
    assert result["rows"][0].items() >= ROW.items()
    printed = capsys.readouterr().out
    assert all(name in printed for name in prove.STAGES)


def test_a_failed_stage_makes_the_command_fail(monkeypatch, tmp_path):
    card = Card(takes=0, outcomes={"repeat": {"x": failed("differs")}})
    assert _command(monkeypatch, tmp_path, card, "--stages", "repeat") == 1
    assert _command(monkeypatch, tmp_path, Card(takes=0), "--stages", "ledger") == 0


def test_a_second_run_of_the_day_adds_to_the_file(monkeypatch, tmp_path):
    other = ROW | {"rival": "torch", "median_us": 2.0}
    first = {"speed": {"a": passed("", rows=[ROW | {"median_us": 1.0}, other])}}
    again = {"speed": {"a": passed("", rows=[ROW | {"median_us": 3.0}])}}
    _command(monkeypatch, tmp_path, Card(0, first), "--stages", "bench,repeat")
    _command(monkeypatch, tmp_path, Card(0, again), "--stages", "bench")
    result = results_file.read(next(tmp_path.glob("*.json")))
    assert {row["rival"]: row["median_us"] for row in result["rows"] if "median_us" in row} == {
        "triton": 3.0,
        "torch": 2.0,
    }
    assert list(result["stages"]) == ["bench", "repeat"]


def test_figures_of_another_version_do_not_mix(monkeypatch):
    def result(torch_version, rival):
        row = ROW | {"rival": rival}
        card = CARD | {"torch": torch_version}
        return {"schema": 1, "date": "d", "card": card, "ceilings": CEILINGS} | {
            "stages": {},
            "rows": [row],
        }

    same = results_file.add(result("2.11.0", "a"), result("2.11.0", "b"))
    assert [row["rival"] for row in same["rows"]] == ["a", "b"]
    changed = results_file.add(result("2.11.0", "a"), result("2.13.0", "b"))
    assert [row["rival"] for row in changed["rows"]] == ["b"]


def test_an_unknown_schema_is_refused(tmp_path):
    path = tmp_path / "result.json"
    path.write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="schema 99, this program reads 1"):
        results_file.read(path)


def test_a_copy_without_git_has_an_unknown_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(results_file, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert results_file.commit() == "unknown"


# --- what single stages make of what they see -----------------------------------------------------

OUTPUT = """\
========= COMPUTE-SANITIZER
{report}
our kernels: _backward _forward
========= ERROR SUMMARY: {count} errors
"""


def test_sanitizer_reports_are_told_apart_by_kernel():
    clean = sanitize.judge(OUTPUT.format(report="", count=0), 0)
    assert clean == passed("2 kernels")
    ours = "========= Invalid __global__ write of size 4 bytes\n=========     at _forward+0x1f0"
    assert sanitize.judge(OUTPUT.format(report=ours, count=3), 1) == failed("3 errors in _forward")
    others = "========= Uninitialized read\n=========     at void at::native::fill<float>+0x10"
    assert sanitize.judge(OUTPUT.format(report=others, count=1), 1)["state"] == "passed"


def test_a_hazard_of_racecheck_is_an_error():
    text = "our kernels: _forward\n{}RACECHECK SUMMARY: {} hazards displayed (2 errors, 0 warnings)"
    at = "=========  Write Thread (0,0,0) at _forward+0x90\n========= "
    assert sanitize.judge(text.format(at, 2), 1) == failed("2 errors in _forward")
    assert sanitize.judge(text.format("", 0), 0)["state"] == "passed"


def test_a_program_that_dies_under_the_sanitizer_has_failed():
    assert sanitize.judge("RuntimeError: boom\n", 1) == failed("ended with 1: RuntimeError: boom")
    unsupported = "========= Error: Device not supported. Please refer to the documentation"
    assert sanitize.judge(unsupported, 1)["state"] == "not there"


def test_the_sanitized_program_names_every_operation_that_has_dropout():
    import inspect

    from kernels import torch_ops

    functions = torch_ops.OPS._asdict().items()
    with_dropout = [
        name for name, op in functions if "dropout_p" in inspect.signature(op).parameters
    ]
    assert set(sanitizer_workload.WITH_DROPOUT) == set(with_dropout)


def test_parity_fails_with_a_test_and_with_tests_that_did_not_run():
    ran = [("t::a", "passed", ""), ("t::b", "skipped", "no"), ("t::c", "passed", "")]
    assert parity.judge(ran, None) == passed("2 passed, 1 skipped")
    text = "t.py:3\nE   assert 1 == 2\nt.py:3: Error"
    wrong = parity.judge([*ran, ("t::d", "failed", text)], None)
    assert wrong["state"] == "failed"
    assert wrong["lines"] == ["t::d: assert 1 == 2"]
    assert parity.judge(ran, "the time was over before the last test")["state"] == "failed"
    assert parity.judge([("t::b", "skipped", "no")], None)["state"] == "failed"


def test_parity_counts_real_outcomes(tmp_path):
    tests = tmp_path / "test_some.py"
    tests.write_text("def test_a(): pass\ndef test_b(): assert 1 == 2\n")
    file = tmp_path / "outcomes"
    assert parity.run(str(tests), None, file=file, seconds=300) is None
    outcomes = sorted(outcome for _, outcome, _ in parity.read(file))  # its workers take turns
    assert outcomes == ["failed", "passed"]


def test_bench_keeps_what_was_measured_before_a_failure():
    row = ROW | {"shape": "(1)"}
    assert speed.judge("attention", [row], 0)["rows"] == [row]
    broken = speed.judge("attention", [row], 1)
    assert (broken["state"], broken["rows"]) == ("failed", [row])
    assert speed.judge("attention", [], 0) == no_time()


def test_the_loaded_kernels_are_held_against_the_ledger(monkeypatch, tmp_path):
    figures_of_it = {"registers": 40, "spills": 0, "shared": 1024}
    row = {"key": "layer_norm_forward_kernel() C=768", "target": "80", "cards": [80, 86, 89]}
    path = tmp_path / "ledger.json"
    path.write_text(json.dumps({triton.__version__: [row | figures_of_it]}))
    monkeypatch.setattr(ledger, "COMMITTED", path)
    loaded = {row["key"]: figures_of_it}
    monkeypatch.setattr(ledger, "loaded", lambda case: loaded)
    with launch.target(86):
        assert ledger.work("layer_norm", 1.0)["state"] == "passed"
        loaded[row["key"]] = figures_of_it | {"registers": 41}
        wrong = ledger.work("layer_norm", 1.0)
        assert wrong["state"] == "failed"
        assert "'registers': 41" in wrong["lines"][0]
        loaded["layer_norm_forward_kernel() C=384"] = figures_of_it
        assert any("not in the ledger" in line for line in ledger.work("layer_norm", 1.0)["lines"])
        path.write_text(json.dumps({"0.0.1": []}))
        assert ledger.work("layer_norm", 1.0)["state"] == "not there"


def test_what_people_read_last_is_the_table_of_stages(monkeypatch, tmp_path, capsys):
    case = Case("layer_norm", GPT2_64K)
    row = ROW | {"operation": "layer_norm", "shape": workloads.shape(case), "pass": "forward"}
    parts = {"layer_norm": passed("3 figures", rows=[row | {"ceiling": 0.9}])}
    outcomes = {"speed": parts, "tune": {"a": passed("9 tiles timed", lines=["a better tile"])}}
    _command(monkeypatch, tmp_path, Card(0, outcomes), "--stages", "tune,bench")
    *_, better, target, tune, bench, undone, _, path = capsys.readouterr().out.splitlines()
    assert better == "tune: a better tile"
    assert target.startswith("reached: 0.90 of 0.85, share of copy bandwidth, layer_norm 65,536")
    assert tune.split()[:2] == ["tune", "passed"]
    assert bench.split()[:2] == ["bench", "passed"]
    assert undone.startswith("not done: profile, step, parity")
    assert path.endswith(".json")


def test_repeat_compares_bits():
    x = torch.tensor([float("nan"), 0.0], dtype=torch.bfloat16)
    assert torch.equal(repeat.bits(x), repeat.bits(x.clone()))
    assert not torch.equal(
        repeat.bits(x), repeat.bits(torch.tensor([float("nan"), -0.0]).bfloat16())
    )


def test_neighbours_of_a_tile_differ_in_one_number():
    assert neighbours((64, 8)) == [(32, 8), (128, 8), (64, 4), (64, 16)]
    assert neighbours(3) == [1, 2, 4, 6]
    assert neighbours({64: (128, True)}) == [{64: (64, True)}, {64: (256, True)}]


WITHOUT = """
import importlib, importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(name)

MISSING = ("pytest", "xdist", "pytest_benchmark", "hypothesis", "tyro", "tqdm", "matplotlib",
           "safetensors", "tiktoken", "transformers", "liger_kernel")
sys.meta_path.insert(0, Missing())
from bench import prove
for name, stage in prove.STAGES.items():
    try:
        importlib.import_module(stage.module)
    except ModuleNotFoundError as error:
        print(name, error)
"""


def test_a_missing_package_costs_the_stage_that_needs_it():
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        cwd=results_file.REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout.splitlines() == ["bench pytest"]
