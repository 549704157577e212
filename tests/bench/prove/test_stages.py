"""The stages of `make prove`: what each of them measures, and how it judges that."""

import pytest
import torch

from bench import training
from bench.prove.stage import failed, no_time, passed
from bench.prove.stages import loss, parity, profile, repeat, sanitize, speed
from bench.prove.stages.tune import neighbours
from bench.workloads.steps import TrainingStep
from gpt.config.model import ModelConfig
from kernels import torch_ops
from tests.bench.peers import NANOGPT
from tests.runs import CPU, SIZES, write_text

DEVICE = torch.device("cpu")
ROW = {"shape": "x", "precision": "x", "pass": "x", "implementation": "triton"}


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
    assert parity.judge(ran, None) == no_time(
        message="2 passed, 1 skipped before the time was over"
    )
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


def test_bench_keeps_what_was_measured_before_a_failure():
    assert speed.judge("attention", [ROW], 0)["state"] == "passed"
    broken = speed.judge("attention", [ROW], 1)
    assert (broken["state"], broken["rows"]) == ("failed", [ROW])
    assert speed.judge("attention", [], 0) == no_time()


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


def test_neighbours_of_a_tile_differ_in_one_number():
    assert neighbours((64, 8)) == [(32, 8), (128, 8), (64, 4), (64, 16)]
    assert neighbours(3) == [1, 2, 4, 6]
    assert neighbours({64: (128, True)}) == [{64: (64, True)}, {64: (256, True)}]


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


def test_first_evaluation_at_or_below_the_loss_counts(tmp_path):
    written = ""
    for step, key, value in ((25, "val_loss", 1.5), (30, "loss", 1.1), (50, "val_loss", 1.4697)):
        assert loss.first_evaluation(tmp_path) is None
        written += f'{{"step": {step}, "{key}": {value}}}\n'
        (tmp_path / "metrics.jsonl").write_text(written + '{"step": 80, "val_l')
    assert loss.first_evaluation(tmp_path)["step"] == 50


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
