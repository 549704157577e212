"""`make prove` without a GPU: its failures and results, and the verdict of each stage."""

import os
import signal
import time

import pytest
import torch

from bench import results, training
from bench.prove import __main__ as prove
from bench.prove.stage import beside, failed, no_time, passed, run_stage
from bench.prove.stages import loss, parity, repeat, sanitize
from bench.workloads.steps import TrainingStep
from gpt.config.model import ModelConfig
from kernels import torch_ops
from tests.bench.prove import stage
from tests.bench.prove.stage import CEILINGS, GPU, PASSED
from tests.runs import CPU, SIZES, write_text

ROW = dict.fromkeys(results.KEY, "x")
DEVICE = torch.device("cpu")
CHOSEN = ("parity", "sanitize", "repeat", "tune", "bench")


@pytest.fixture
def command(monkeypatch, tmp_path):
    """`make prove` with fake stages."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = signal.getsignal(signal.SIGTERM)

    def command(stages=CHOSEN, **outcomes):
        """The exit code and the results. outcomes: by module."""

        def run_stage(module, limit, log, only=()):
            name = module.rpartition(".")[2]
            return ({"gpu": PASSED} | outcomes).get(name, {"part": passed("well")})

        monkeypatch.setattr(prove, "run_stage", run_stage)
        options = [f"--out={tmp_path}", "--commit=abc", f"--stages={','.join(stages)}"]
        code = prove.main(options)
        (path,) = tmp_path.glob("nvidia-h200-*.json")
        return code, results.read(path)

    yield command
    signal.signal(signal.SIGTERM, before)


def test_results_are_saved_after_each_stage_and_a_failure_does_not_stop_the_others(command):
    wrong = {"x": passed("well"), "y": failed("7 of 250 runs differ")}
    with pytest.raises(AttributeError):  # as if it were stopped
        command(sanitize=None)
    code, result = command(CHOSEN[2:], repeat=wrong, tune={})  # nothing is proven
    assert (code, list(result["stages"])) == (1, ["parity", *CHOSEN[2:]])
    states = [stage["state"] for stage in result["stages"].values()]
    assert states == ["passed", "failed", "failed", "passed"]
    assert result["stages"]["repeat"]["message"] == "y: 7 of 250 runs differ"


def test_process_that_dies_fails_one_part(monkeypatch, tmp_path):
    monkeypatch.setenv("PARTS", "one, first;raises;two;dies;differs")
    parts = run_stage(stage.__name__, 60.0, tmp_path / "log")
    assert [part for part in parts if parts[part]["state"] == "passed"] == ["one, first", "two"]
    assert parts["raises"] == failed("ended with 1: RuntimeError: an illegal memory access")
    assert parts["dies"]["message"].startswith("ended with 7")
    assert parts["differs"] == failed("a bit differs")
    assert list(run_stage(stage.__name__, 60.0, tmp_path / "log", ["two"])) == ["two"]
    (outcome,) = run_stage("tests.no_such_stage", 60.0, tmp_path / "log").values()
    assert "No module named 'tests.no_such_stage'" in outcome["message"]


def test_what_hangs_is_killed_with_what_it_has_started(monkeypatch, tmp_path):
    """As a part of a stage, or beside it."""
    start, hangs = time.monotonic(), (time.sleep, 60)
    monkeypatch.setenv("PIPE", str(tmp_path / "pipe"))
    monkeypatch.setenv("PARTS", "one;hangs;two")
    os.mkfifo(tmp_path / "pipe")
    with open(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)) as pipe:
        with beside([(print, "compiled"), hangs], 4.5, tmp_path / "log of others"):
            parts = run_stage(stage.__name__, 4.0, tmp_path / "log")
        os.set_blocking(pipe.fileno(), True)
        assert pipe.read() == ""  # once no process has it open
    assert parts.pop("one")["state"] == "passed"
    assert parts == {"hangs": no_time(), "two": no_time()}
    assert "\ncompiled\n" in (tmp_path / "log of others").read_text()
    assert time.monotonic() - start < 30


def test_runs_of_one_day_share_a_file_unless_a_version_changes(command):
    first, second = (ROW | {"median_us": value} for value in (1.0, 3.0))
    other = ROW | {"implementation": "torch"}
    command(["bench", "sanitize"], speed={"a": passed("", rows=[first, other])})
    _, result = command(["bench"], speed={"a": passed("", rows=[second])})
    made = {"commit": "abc", "date": result["date"]}
    assert (result["gpu"], result["ceilings"]) == (GPU, CEILINGS)
    assert result["rows"] == [second | made, other | made]
    assert [made.items() <= stage.items() for stage in result["stages"].values()] == [True] * 2
    later = result | {"gpu": GPU | {"torch": "2.13.0"}, "rows": []}
    assert results.merge(result, later) == later


# --- what each stage measures, and how it judges that ---------------------------------------------


RAN = [("t::a", "passed", ""), ("t::b", "skipped", "no")]
SUMMARY = f"{sanitize.DONE}\n=== ERROR SUMMARY: "
OTHERS = f"at void at::native::fill_kernel<float>+0x10\n{SUMMARY}1 errors"


@pytest.mark.parametrize(
    ("stage", "found", "code", "outcome"),
    [
        (parity, RAN, 2, failed("1 passed, 1 skipped; pytest ended with 2")),
        (parity, RAN, None, no_time(message="1 passed, 1 skipped before the time was over")),
        (parity, RAN[1:], 0, failed("1 skipped; pytest ended with 0")),
        (parity, [("t::c", "failed", "wrong")], 1, failed("1 failed", lines=["t::c: wrong"])),
        (sanitize, f"{SUMMARY}0 errors", 0, passed("no errors")),
        (sanitize, f"at a_kernel+0x1f0\n{SUMMARY}3 errors", 1, failed("3 errors in a_kernel")),
        (sanitize, "at a_kernel\nRACECHECK SUMMARY: 2 hazards", 1, failed("2 errors in a_kernel")),
        (sanitize, OTHERS, 1, passed("no errors; 1 reports in other kernels")),
        (sanitize, "ERROR SUMMARY: 0 errors\nboom", 1, failed("ended with 1: boom")),
    ],
)
def test_judgement_of_what_a_tool_has_found(stage, found, code, outcome):
    assert stage.judge(found, code) == outcome


def test_a_run_ends_at_the_loss(monkeypatch, tmp_path):
    options = ["--preset=quickstart", *SIZES, *CPU, "--max-iters=1000000"]
    monkeypatch.setattr(loss, "RUNS", {"tiny": options})
    monkeypatch.setattr(loss, "TARGET_LOSS", 10.0)
    monkeypatch.setenv("SHAKESPEARE", str(write_text(tmp_path)))
    outcome = loss.work("tiny", 200.0)
    assert (outcome["state"], outcome["figures"]["step"]) == ("passed", 0)
    monkeypatch.setattr(loss.sys, "executable", "false")
    assert loss.work("tiny", 200.0) == failed("train.py ended with 1 before it reached 10.0")


def test_repeat_compares_the_bits_of_a_training_step():
    sizes = {"rows": 2, "block_size": 8, "n_head": 2, "n_embd": 16}
    run = repeat.seeded(TrainingStep("lecture"), torch_ops.OPS, DEVICE, **sizes)
    found = run()
    assert len(found) == 1 + 28  # two blocks of 11, two tables, a norm and a head with biases
    assert all(map(torch.equal, found, run()))
    assert not torch.equal(*map(repeat.bits, torch.tensor([0.0, -0.0])))


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_step_has_rates_and_spread(implementation, monkeypatch):
    model = ModelConfig(block_size=8, n_layer=1, n_head=2, n_embd=16, dropout=0.2)
    monkeypatch.setitem(training.SIZES, "lecture", {"model": model, "batch_size": 3})
    row = training.measure("lecture", training.Variant(implementation), DEVICE, 0.0)
    assert row["steps"] == training.MIN_GROUPS * training.GROUP
    assert row["tokens_per_second"] == pytest.approx(3 * 8 / row["milliseconds"] * 1e3)
    low, high = row["milliseconds_p20_p80"]
    assert 0 < low <= row["milliseconds"] <= high
