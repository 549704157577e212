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
from bench.prove.stages import loss, parity, profile, repeat, sanitize, speed, step
from bench.workloads import timed
from bench.workloads.steps import TrainingStep
from gpt.config.model import ModelConfig
from kernels import torch_ops
from tests.bench.peers import NANOGPT
from tests.bench.prove import stage
from tests.bench.prove.stage import CEILINGS, GPU, PASSED
from tests.runs import CPU, SIZES, write_text

ROW = dict.fromkeys(results.KEY, "x") | {"implementation": "triton"}
DEVICE = torch.device("cpu")
CHOSEN = ("parity", "sanitize", "repeat", "tune", "bench")


@pytest.fixture
def command(monkeypatch, tmp_path):
    """`make prove` with fake stages, each of which takes the given share of its time."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def stages_of_results():
        paths = list(tmp_path.glob("*.json"))
        return results.read(*paths)["stages"] if paths else {}

    def command(takes, stages=None, outcomes=None):
        """The exit code, the seconds and earlier results of each stage, and all results."""
        now, seconds, saved = [0.0], {}, {}

        def run_stage(module, limit, log, only=()):
            name = module.rpartition(".")[2]
            seconds[name], saved[name] = limit, list(stages_of_results())
            now[0] += 10 if name == "gpu" else takes * limit
            default = {"a": passed("well"), "b": passed("well", rows=[ROW])}
            return {"gpu": PASSED, **(outcomes or {})}.get(name, default)

        monkeypatch.setattr(prove, "run_stage", run_stage)
        options = [f"--out={tmp_path}", "--commit=abc", f"--stages={stages or ','.join(CHOSEN)}"]
        code = prove.main(options, clock=lambda: now[0])
        return code, seconds, saved, stages_of_results()

    before = signal.getsignal(signal.SIGTERM)
    yield command
    signal.signal(signal.SIGTERM, before)


def test_stages_share_the_time_and_what_others_leave(command):
    code, slow, _, _ = command(takes=1.0)
    assert code == 0
    assert sum(slow.values()) - slow["gpu"] == pytest.approx(540 - 10)
    shares = [prove.STAGES[name].share for name in CHOSEN]
    assert slow["parity"] == pytest.approx((540 - 10) * shares[0] / sum(shares))
    _, fast, _, _ = command(takes=0.1)
    assert fast["parity"] == slow["parity"]
    assert fast["speed"] > 2 * slow["speed"]
    assert command(3.0, "parity,repeat,tune")[-1]["tune"]["state"] == "no time"


def test_results_are_saved_after_each_stage_and_a_failure_does_not_stop_the_others(command):
    wrong = {"x": passed("well"), "y": failed("7 of 250 runs differ")}
    code, _, saved, found = command(0.5, outcomes={"repeat": wrong, "tune": {}})
    assert code == 1
    assert list(saved.values()) == [[], *(list(CHOSEN[:count]) for count in range(5))]
    assert list(found) == list(CHOSEN)
    assert found["repeat"]["state"] == "failed"
    assert found["repeat"]["message"] == "y: 7 of 250 runs differ"
    assert found["tune"]["state"] == "failed"  # without parts it proves nothing


def test_the_plan_compiles_ahead(command, monkeypatch):
    beside = mock.Mock(return_value=contextlib.nullcontext())
    monkeypatch.setattr(prove, "beside", beside)
    assert list(command(0.5, ",".join(prove.PLAN))[-1]) == list(prove.PLAN)
    calls = [call.args[0] for call in beside.call_args_list if call.args[0]]
    steps = [(compile.compile_step, part) for part in step.COMPILED]
    assert calls == [[(compile.compile_kernels,)], steps]


def test_every_kernel_of_the_plan_is_compiled_ahead(monkeypatch):
    monkeypatch.setattr(timed, "TRAINING", timed.TRAINING[:1])  # whose other tiles are tried
    monkeypatch.setattr(compile, "STEPS", (compile.STEPS[0], compile.STEPS[-1]))
    found = {one.kernel.fn.__name__ for one in compile.distinct(compile.launches(90))}
    assert found >= {  # of training steps, decode steps and timed operations
        *("attention_forward_kernel", "adamw_update_kernel", "decode_linear_kernel"),
        *("cross_entropy_backward_kernel", "gemm_kernel"),
    }


def test_parts_share_the_time_by_weight(monkeypatch, tmp_path):
    now, given = [0.0], {}

    def work(part, seconds):
        given[part] = seconds
        now[0] += 0.5 * seconds
        return passed("well")

    monkeypatch.setattr(stage, "PARTS", {"a": 1, "b": 2, "c": 1})
    monkeypatch.setattr(stage, "work", work)
    work_through(stage.__name__, 80.0, [], [], tmp_path / "outcomes", clock=lambda: now[0])
    assert given == {"a": 20, "b": pytest.approx(70 * 2 / 3), "c": pytest.approx(70 * 2 / 3)}


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(parts, seconds=60.0, only=()):
        monkeypatch.setenv("PARTS", parts)
        return run_stage(stage.__name__, seconds, tmp_path / "log", only)

    return run


def test_process_that_dies_fails_one_part(run, tmp_path):
    parts = run("one, first;raises;two;dies;differs")
    assert [part for part in parts if parts[part]["state"] == "passed"] == ["one, first", "two"]
    assert parts["raises"] == failed("ended with 1: RuntimeError: an illegal memory access")
    assert parts["dies"]["message"].startswith("ended with 7")
    assert parts["differs"] == failed("a bit differs")
    assert list(run("one;two, again;dies", only=["two, again"])) == ["two, again"]
    (outcome,) = run_stage("tests.no_such_stage", 60.0, tmp_path / "log").values()
    assert "No module named 'tests.no_such_stage'" in outcome["message"]


def test_what_hangs_is_killed_with_what_it_has_started(run, monkeypatch, tmp_path):
    """As a part of a stage, or beside it."""
    start, hangs = time.monotonic(), (time.sleep, 60)
    monkeypatch.setenv("PIPE", str(tmp_path / "pipe"))
    os.mkfifo(tmp_path / "pipe")
    with open(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)) as pipe:
        with beside([(print, "compiled"), hangs], 4.5, tmp_path / "log of others"):
            parts = run("one;hangs;two", seconds=4.0)
        os.set_blocking(pipe.fileno(), True)
        assert pipe.read() == ""  # once no process has it open
    assert parts.pop("one")["state"] == "passed"
    assert parts == {"hangs": no_time(), "two": no_time()}
    assert "\ncompiled\n" in (tmp_path / "log of others").read_text()
    assert time.monotonic() - start < 30


def test_sigterm_is_an_exit_so_that_the_stage_is_killed(command):
    command(1.0, "parity")
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM


def test_without_a_working_gpu_no_stage_is_run(monkeypatch, capsys, command):
    code, seconds, _, _ = command(1.0, outcomes={"gpu": {"gpu": failed("no CUDA driver")}})
    assert (code, list(seconds)) == (1, ["gpu"])
    assert "the GPU does not work: no CUDA driver" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command(1.0)[0] == 2
    assert "needs a CUDA GPU" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command(1.0, "parity,speling")
    assert "there is no stage speling; choose from profile, step" in capsys.readouterr().err


def test_runs_of_one_day_share_a_file(command, tmp_path, capsys):
    first, second, other = ({"median_us": value} for value in (1.0, 3.0, 2.0))
    rows = [ROW | first, ROW | other | {"implementation": "torch"}]
    for stages, measured in (("bench,sanitize", rows), ("bench", [ROW | second])):
        outcomes = {"speed": {"a": passed("", rows=measured)}, "sanitize": {"b": passed("")}}
        assert command(0, stages, outcomes)[0] == 0
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


def test_results_of_another_version_schema_or_folder_are_recognised(monkeypatch, tmp_path):
    earlier = {"gpu": GPU, "stages": {}, "rows": [ROW]}
    later = {"gpu": GPU | {"torch": "2.13.0"}, "stages": {}, "rows": []}
    assert results.merge(earlier, later) == later
    (tmp_path / "result.json").write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="schema 99 instead of 2"):
        results.read(tmp_path / "result.json")
    # without git, the commit is unknown
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert results.commit() == "unknown"


# --- what each stage measures, and how it judges that ---------------------------------------------


def test_sanitizer_fails_for_errors_in_our_kernels():
    def judge(report, count):
        return sanitize.judge(f"{report}\n{sanitize.DONE}\n=== ERROR SUMMARY: {count} errors", 1)

    assert judge("", 0) == passed("no errors")
    assert judge("===     at a_kernel+0x1f0", 3) == failed("3 errors in a_kernel")
    others = judge("===     at void at::native::fill_kernel<float>+0x10", 1)
    assert others == passed("no errors; 1 reports in other kernels")
    race = f"{sanitize.DONE}\n=== Write Thread (0,0,0) at a_kernel+0x90\n"
    race += "=== RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)"
    assert sanitize.judge(race, 1) == failed("2 errors in a_kernel")
    assert sanitize.judge("boom\n=== ERROR SUMMARY: 0 errors", 1)["state"] == "failed"
    assert sanitize.judge("boom\n", 1) == failed("ended with 1: boom")


def test_parity_fails_unless_tests_pass():
    ran = [("t::a", "passed", ""), ("t::b", "skipped", "no"), ("t::c", "passed", "")]
    assert parity.judge(ran, 0) == passed("2 passed, 1 skipped")
    wrong = parity.judge([*ran, ("t::d", "failed", "assert 1 == 2")], 1)
    assert (wrong["state"], wrong["lines"]) == ("failed", ["t::d: assert 1 == 2"])
    assert parity.judge(ran, 2)["state"] == "failed"  # interrupted
    over = "2 passed, 1 skipped before the time was over"
    assert parity.judge(ran, None) == no_time(message=over)
    assert parity.judge([("t::b", "skipped", "no")], 0)["state"] == "failed"


def test_parity_records_the_outcome_of_each_test(monkeypatch):
    monkeypatch.setattr(parity, "WORKERS", 0)
    outcome = parity.work("tests/gpt/generation/test_text_stream.py", 200.0)
    assert outcome == passed("2 passed")


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
    """Passed, but for our kernels, which need a GPU; and out of time."""
    monkeypatch.setattr(speed, "DEVICE", DEVICE)
    monkeypatch.setattr(timed, "GPU", timed.CPU)
    outcome = speed.work("rms_norm", 60.0)
    assert (outcome["state"], len(outcome["rows"])) == ("passed", 6)
    assert outcome["message"] == "6 measurements, 3 of 3 shapes and passes"
    assert speed.work("rms_norm", -1.0) == no_time()
    missing = {"triton": lambda: 1 / 0, "torch": lambda: Baseline(torch_ops.rms_norm)}
    monkeypatch.setattr(speed, "implementations", lambda *case: missing)
    outcome = speed.work("rms_norm", 60.0)
    assert (outcome["state"], len(outcome["rows"])) == ("failed", 3)
    assert outcome["message"].endswith("ours: ZeroDivisionError: division by zero")


def test_repeat_compares_the_bits_of_a_training_step():
    sizes = {"rows": 2, "block_size": 8, "n_head": 2, "n_embd": 16}
    run = repeat.seeded(TrainingStep("lecture"), torch_ops.OPS, DEVICE, **sizes)
    loss, *gradients = run()
    assert len(gradients) == 28  # two blocks of 11, two tables, a norm and a head with biases
    assert all(map(torch.equal, (loss, *gradients), run()))
    x = torch.tensor([float("nan"), 0.0], dtype=torch.bfloat16)
    y = torch.tensor([float("nan"), -0.0], dtype=torch.bfloat16)
    assert torch.equal(repeat.bits(x), repeat.bits(x.clone()))
    assert not torch.equal(repeat.bits(x), repeat.bits(y))


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
    assert row["mfu"] is None  # the peak of a CPU is unknown


def test_kernels_of_a_replay_are_grouped_by_kind():
    events = [("nvjet_sm90_tst", 30.0), ("attention_forward_kernel", 40.0)]
    events += [("void cublasLt::splitKreduce_kernel<32>", 10.0), ("Memset (Unknown)", 4.0)]
    events += [("void at::native::reduce_kernel<128>", 6.0), ("attention_forward_kernel", 10.0)]
    rows = profile.kernel_rows("gpt2", events)
    assert [(row["kernel"], row["launches"], row["share"]) for row in rows] == [
        ("attention_forward_kernel", 2, 0.5),
        ("matrix products of cuBLAS", 2, 0.4),
        ("PyTorch's other kernels", 1, 0.06),
        ("copies and fills", 1, 0.04),
    ]
