"""`make prove` without a GPU: its time, failures and results, and the verdict of each stage."""

import contextlib
import os
import signal
import time
from unittest import mock

import pytest
import torch

from bench import results, training
from bench.baselines import Baseline
from bench.prove import __main__ as prove
from bench.prove import compile
from bench.prove.stage import beside, failed, no_time, passed, run_stage, work_through
from bench.prove.stages import loss, parity, profile, repeat, sanitize, speed, step, tune
from bench.workloads import timed
from bench.workloads.operations import GPT2, GPT2_4K, Case
from bench.workloads.steps import TrainingStep
from gpt.config.model import ModelConfig
from kernels import torch_ops
from kernels.common import launch
from tests.bench.peers import NANOGPT
from tests.bench.prove import stage
from tests.bench.prove.stage import CEILINGS, GPU, PASSED
from tests.runs import CPU, SIZES, write_text

ROW = dict.fromkeys(results.KEY, "x")
DEVICE = torch.device("cpu")
ATTENTION, ATTENTION_4K = Case("attention", GPT2), Case("attention", GPT2_4K)
CHOSEN = ("parity", "sanitize", "repeat", "tune", "bench")


@pytest.fixture
def command(monkeypatch, tmp_path):
    """`make prove` with fake stages, each of which takes the given share of its time."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = signal.getsignal(signal.SIGTERM)

    def command(takes, stages=CHOSEN, **outcomes):
        """The exit code, the seconds of each stage, and the results. outcomes: by module."""
        now, seconds = [0.0], {}

        def run_stage(module, limit, log, only=()):
            name = module.rpartition(".")[2]
            seconds[name] = limit
            now[0] += 10 if name == "gpu" else takes * limit
            return ({"gpu": PASSED} | outcomes).get(name, {"part": passed("well")})

        monkeypatch.setattr(prove, "run_stage", run_stage)
        options = [f"--out={tmp_path}", "--commit=abc", f"--stages={','.join(stages)}"]
        code = prove.main(options, clock=lambda: now[0])
        return code, seconds, [results.read(path) for path in tmp_path.glob("nvidia-h200-*.json")]

    yield command
    signal.signal(signal.SIGTERM, before)


def test_stages_share_the_time_and_what_others_leave(command):
    code, slow, _ = command(takes=1.0)
    assert code == 0
    assert sum(slow.values()) - slow["gpu"] == pytest.approx(540 - 10)
    shares = [prove.STAGES[name].share for name in CHOSEN]
    assert slow["parity"] == pytest.approx((540 - 10) * shares[0] / sum(shares))
    assert command(takes=0.1)[1]["speed"] > 2 * slow["speed"]
    _, _, (result,) = command(takes=5.0)
    assert result["stages"]["bench"]["state"] == "no time"
    with pytest.raises(SystemExit) as ended:  # so that the stage is killed
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM


def test_results_are_saved_after_each_stage_and_a_failure_does_not_stop_the_others(command):
    wrong = {"x": passed("well"), "y": failed("7 of 250 runs differ")}
    with pytest.raises(AttributeError):  # as if it were stopped
        command(0.5, sanitize=None)
    code, _, (result,) = command(0.5, CHOSEN[2:], repeat=wrong, tune={})  # nothing is proven
    assert (code, list(result["stages"])) == (1, ["parity", *CHOSEN[2:]])
    states = [stage["state"] for stage in result["stages"].values()]
    assert states == ["passed", "failed", "failed", "passed"]
    assert result["stages"]["repeat"]["message"] == "y: 7 of 250 runs differ"


def test_the_plan_compiles_ahead(command, monkeypatch):
    beside = mock.Mock(return_value=contextlib.nullcontext())
    monkeypatch.setattr(prove, "beside", beside)
    assert command(0.5, prove.PLAN)[0] == 0
    calls = [call.args[0] for call in beside.call_args_list if call.args[0]]
    assert calls == [[(compile.compile_kernels,)], compile.COMPILATIONS]
    assert compile.COMPILATIONS[0] == (compile.compile_step, step.COMPILED[0])


def test_every_kernel_of_the_plan_is_compiled_ahead(monkeypatch):
    monkeypatch.setattr(timed, "TRAINING", timed.TRAINING[:1])  # whose other tiles are tried
    monkeypatch.setattr(compile, "STEPS", compile.STEPS[-1:])
    found = {one.kernel.fn.__name__ for one in compile.distinct(compile.launches(90))}
    assert found >= {"decode_linear_kernel", "cross_entropy_backward_kernel", "gemm_kernel"}


def test_every_tile_that_a_case_uses_is_tuned():
    """Also rows of variants; descriptors where there are none, and pointers where there are."""
    with launch.target(90):
        used = [tune.tiles_used_by(case, DEVICE) for case in (ATTENTION, ATTENTION_4K)]
        tried = [tune.variants(case, used[0][1], DEVICE) for case in (ATTENTION, ATTENTION_4K)]
    rows = ["attention_causal", "attention_described", "attention_q_short", "attention_kv"]
    assert used == [rows, [row.removesuffix("_short") for row in rows]]
    described = [one.options["DESCRIBED"] for ((_, launches),) in tried for one in launches]
    assert described == [True] * 3 + [False] * 3


def test_parts_share_the_time_by_weight(monkeypatch, tmp_path):
    work = mock.Mock(return_value=passed("well"))
    monkeypatch.setattr(stage, "PARTS", {"a": 1, "b": 2, "c": 1})
    monkeypatch.setattr(stage, "work", work)
    clock = iter([0.0, 0.0, 10.0, 45.0]).__next__  # the time at the start and before each part
    work_through(stage.__name__, 80.0, [], [], tmp_path / "outcomes", clock)
    assert work.mock_calls == [mock.call("a", 20), mock.call("b", 70 * 2 / 3), mock.call("c", 35)]


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


def test_without_a_working_gpu_no_stage_is_run(monkeypatch, capsys, command):
    code, seconds, _ = command(1.0, gpu={"gpu": failed("no CUDA driver")})
    assert (code, list(seconds)) == (1, ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command(1.0)[0] == 2
    printed = "the GPU does not work: no CUDA driver\nmake prove needs a CUDA GPU"
    assert printed in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command(1.0, ["parity", "speling"])
    assert "there is no stage speling; choose from profile, parity" in capsys.readouterr().err


def test_runs_of_one_day_share_a_file_unless_a_version_changes(command):
    first, second = (ROW | {"median_us": value} for value in (1.0, 3.0))
    other = ROW | {"implementation": "torch"}
    command(0, ["bench", "sanitize"], speed={"a": passed("", rows=[first, other])})
    _, _, (result,) = command(0, ["bench"], speed={"a": passed("", rows=[second])})
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


def test_parity_records_the_outcome_of_each_test(monkeypatch):
    monkeypatch.setattr(parity, "WORKERS", 1)
    assert parity.work("tests/gpt/generation/test_text_stream.py", 200.0) == passed("2 passed")


def test_a_run_ends_at_the_loss(monkeypatch, tmp_path):
    options = ["--preset=quickstart", *SIZES, *CPU, "--max-iters=1000000"]
    monkeypatch.setattr(loss, "RUNS", {"tiny": options})
    monkeypatch.setattr(loss, "TARGET_LOSS", 10.0)
    monkeypatch.setenv("SHAKESPEARE", str(write_text(tmp_path)))
    outcome = loss.work("tiny", 200.0)
    assert (outcome["state"], outcome["figures"]["step"]) == ("passed", 0)
    monkeypatch.setattr(loss.sys, "executable", "false")
    assert loss.work("tiny", 200.0) == failed("train.py ended with 1 before it reached 10.0")


def test_bench_keeps_what_was_measured_before_a_failure(monkeypatch):
    monkeypatch.setattr(speed, "DEVICE", DEVICE)
    monkeypatch.setattr(timed, "GPU", timed.CPU)
    missing = {"triton": lambda: 1 / 0, "torch": lambda: Baseline(torch_ops.rms_norm)}
    monkeypatch.setattr(speed, "implementations", lambda *case: missing)
    outcome = speed.work("rms_norm", 60.0)
    assert (outcome["state"], len(outcome["rows"])) == ("failed", 3)
    assert outcome["message"].endswith("passes; ours: ZeroDivisionError: division by zero")
    del missing["triton"]
    assert speed.work("rms_norm", 60.0)["state"] == "passed"
    assert speed.work("rms_norm", -1.0) == no_time()


def test_repeat_compares_the_bits_of_a_training_step():
    sizes = {"rows": 2, "block_size": 8, "n_head": 2, "n_embd": 16}
    run = repeat.seeded(TrainingStep("lecture"), torch_ops.OPS, DEVICE, **sizes)
    found = run()
    assert len(found) == 1 + 28  # two blocks of 11, two tables, a norm and a head with biases
    assert all(map(torch.equal, found, run()))
    assert not torch.equal(*map(repeat.bits, torch.tensor([0.0, -0.0])))


@pytest.mark.parametrize("implementation", ["reference", "torch", "nanogpt"])
def test_step_has_rates_and_spread(implementation, monkeypatch, tmp_path):
    model = ModelConfig(block_size=8, n_layer=1, n_head=2, n_embd=16, dropout=0.2)
    monkeypatch.setitem(training.SIZES, "lecture", {"model": model, "batch_size": 3})
    (tmp_path / "model.py").write_text(NANOGPT)
    row = training.measure("lecture", training.Variant(implementation), DEVICE, 0.0, tmp_path)
    assert row["steps"] == training.MIN_GROUPS * training.GROUP
    assert row["tokens_per_second"] == pytest.approx(3 * 8 / row["milliseconds"] * 1e3)
    low, high = row["milliseconds_p20_p80"]
    assert 0 < low <= row["milliseconds"] <= high


def test_kernels_of_a_replay_are_grouped_by_kind():
    events = [("nvjet_sm90_tst", 3.0), ("a_kernel", 4.0), ("void cublasLt::splitKreduce<32>", 1.0)]
    events += [("Memset (Unknown)", 0.4), ("void at::native::a_kernel", 0.6), ("a_kernel", 1.0)]
    rows = [list(row.values()) for row in profile.kernel_rows("gpt2", events)]
    assert rows[0] == ["gpt2", "a_kernel", 2, 5.0, 0.5]
    assert rows[1] == ["gpt2", "matrix products of cuBLAS", 2, 4.0, 0.4]
    assert [row[1] for row in rows[2:]] == ["PyTorch's other kernels", "copies and fills"]
