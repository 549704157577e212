"""Timing with a fake clock, the minimal work against PyTorch's count, and `pytest bench` itself."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import baselines
from bench.baselines import Baseline
from bench.compare import Comparison, Failed, row
from bench.results import REPOSITORY
from bench.timer import (
    MAX_ROUNDS,
    MAX_SLEEP,
    MIN_ROUNDS,
    Ceilings,
    HostTimer,
    Samples,
    Trial,
    initial_sleep,
    retry_with_longer_sleep,
    spread,
    time_interleaved,
)
from bench.workloads import timed
from bench.workloads.operations import Case, Sizes
from bench.workloads.steps import TrainingStep
from kernels import torch_ops, triton_ops
from kernels.common import launch

TINY = Sizes("tiny", B=2, T=6, C=8, H=2, V=11)
CPU = torch.device("cpu")
NORM = Case("layer_norm", TINY, "fp32")


class FakeTimer:
    """Returns 1, 2, 3, ... seconds and advances its clock by one second per call."""

    def __init__(self):
        self.timed, self.now, self.hosts = [], 0.0, iter([9.0] * 3 + [1.0, 3.0, 2.0] * 100)

    def host_seconds(self, trial):
        return next(self.hosts)

    def __call__(self, trial, host):
        self.timed.append(trial.call())
        self.now += 1.0
        return float(len(self.timed))

    def run(self, seconds):
        trials = {"a": Trial(lambda: "a"), "b": Trial(lambda: "b")}
        return time_interleaved(trials, self, seconds, clock=lambda: self.now)


def test_trials_are_timed_in_turn():
    timer = FakeTimer()
    samples = timer.run(seconds=100)
    assert timer.timed == ["a", "b"] * 50
    assert samples["a"].seconds == [float(n) for n in range(1, 101, 2)]
    assert samples["a"].host == 2.0  # the median of 1, 3, 2; three warm-up calls do not count


def test_rounds_are_bounded():
    assert len(FakeTimer().run(seconds=0)["a"].seconds) == MIN_ROUNDS
    assert len(FakeTimer().run(seconds=1e9)["b"].seconds) == MAX_ROUNDS


def test_spread_is_the_median_and_two_percentiles():
    assert spread([float(n) for n in range(101)]) == (50, 20, 80)
    assert spread([7.0]) == (7, 7, 7)


@pytest.mark.parametrize(
    ("host", "expected"),
    [(1e-4, [1e-3]), (3e-3, [1e-3, 2e-3, 4e-3]), (1.0, [1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 20e-3])],
)
def test_sleep_grows_until_the_host_is_ahead_of_the_device(host, expected):
    sleeps = []

    def after_sleep(sleep):
        sleeps.append(sleep)
        return 5e-6 + max(0.0, host - sleep), host > sleep

    seconds = retry_with_longer_sleep(after_sleep, 1e-3)
    assert sleeps == pytest.approx(expected)
    assert seconds == pytest.approx(5e-6 + max(0.0, host - MAX_SLEEP))
    assert min(host, MAX_SLEEP) <= initial_sleep(host) <= MAX_SLEEP


def test_floor_is_the_slower_of_copy_and_product():
    ceilings = Ceilings(copy_bytes_per_second=100.0, matmul_flops_per_second=1000.0)
    assert (ceilings.floor(200, 0), ceilings.floor(200, 5000)) == (2, 5)


def test_host_timer_passes_the_result_of_before():
    order = []
    trial = Trial(call=lambda value: order.append(value), before=lambda: order.append("b") or "c")
    assert HostTimer()(trial, 0.0) >= 0
    assert order == ["b", "c"]


def test_row_has_rates_and_the_share_of_the_ceiling():
    result = row(NORM, "forward", "torch", Samples([2e-6], 1e-6), Ceilings(1e9, 1e12))
    moved = 2 * 2 * 6 * 8 * 4  # x read, y written
    assert result["gb_s"] == pytest.approx(moved / 2e-6 / 1e9, rel=1e-3)
    assert result["ceiling"] == pytest.approx(moved / 1e9 / 2e-6, rel=1e-3)
    assert (result["median_us"], result["host_us"], result["rounds"]) == (2, 1, 1)
    assert "tflop_s" not in result


def test_implementation_that_raises_does_not_stop_the_others():
    def fails(x, weight, bias):
        raise RuntimeError("no kernel\nfor this")

    makers = {"fails": lambda: Baseline(fails), "torch": lambda: Baseline(torch_ops.layer_norm)}
    comparison = Comparison(NORM, makers, CPU, HostTimer())
    for direction in timed.PASSES:
        result = comparison.run(direction)
        assert result["fails"].reason == "RuntimeError: no kernel"
        assert len(result["torch"].seconds) >= MIN_ROUNDS


def test_implementation_that_writes_its_inputs_gets_a_copy():
    def writes(x, weight, bias):
        x.data.zero_()
        return x * weight + bias

    makers = {"writes": lambda: Baseline(writes, writes_inputs=True)}
    comparison = Comparison(NORM, makers, CPU, HostTimer())
    x = comparison.inputs[0].detach().clone()
    assert not isinstance(comparison.run("both")["writes"], Failed)
    assert torch.equal(comparison.inputs[0], x)


@pytest.mark.parametrize("operation", ["attention", "attention_qkv", "feed_forward"])
def test_flops_are_those_that_pytorch_counts(operation):
    case = Case(operation, TINY, "fp32")
    inputs = case.inputs("meta")
    leaves = [one for one in inputs if isinstance(one, torch.Tensor)]
    with FlopCounterMode(display=False) as forward:
        out = case.call(torch_ops.OPS, inputs)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(out, leaves, torch.empty_like(out))
    work = timed.work(case)
    # PyTorch counts the whole square of attention, and four products where a backward pass that
    # recomputes the weights needs five
    square, products = (1, 1) if operation == "feed_forward" else (2, 5 / 4)
    assert square * work["forward"].flops == forward.get_total_flops()
    assert square * work["backward"].flops == products * backward.get_total_flops()


def test_every_timed_case_has_work_implementations_and_a_distinct_shape():
    for case in timed.GPU:
        assert all(work.bytes > 0 for work in timed.work(case).values())
        assert {baselines.OURS, "torch"} <= baselines.implementations(case, CPU).keys()
    lines = [(case.operation, timed.shape(case), case.precision) for case in timed.GPU]
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("preset", ["lecture", "gpt2"])
def test_operations_of_a_training_step_are_timed_on_the_same_operands(preset):
    """At the shapes, dtypes, dropout and activation of the recorded step."""
    called = set()

    def noted(name, operation):
        def call(*operands, **options):
            called.add((name, *_described(operands, options)))
            return operation(*operands, **options)

        return call

    ops = triton_ops.OPS._asdict()
    noting = {name: noted(name, ops[name]) for name in ops if name != "adamw"}
    with launch.record(90):
        TrainingStep(preset).run(triton_ops.OPS._replace(**noting), CPU)
    cases = {
        (case.operation, *_described(case.inputs("meta"), case.keywords("meta")))
        for case in timed.TRAINING
    }
    assert len(called) == 6
    for operation, operands, options in called:
        assert any(
            (operation, options) == (name, given)
            # a case may have one more bias
            and all(one in (None, other) for one, other in zip(operands, others, strict=True))
            for name, others, given in cases
        ), (operation, operands, options)


def _described(operands, options):
    """The operands and options that decide how an operation is launched."""
    operands = tuple(
        (tuple(one.shape), one.dtype) if isinstance(one, torch.Tensor) else one for one in operands
    )
    chosen = {name: options.get(name) for name in ("activation", "x_bias")}
    chosen["x_bias"] = chosen["x_bias"] is not None
    return operands, (*chosen.items(), ("dropout_p", options.get("dropout_p") or 0.0))


def test_implementations_that_need_a_gpu_have_a_reason_on_a_cpu():
    found = baselines.implementations(Case("attention", TINY), CPU)
    assert all(isinstance(found[name], str) for name in (baselines.OURS, *baselines.SDPA))
    assert not isinstance(found["torch"], str)


def test_reference_implementations_compute_the_same():
    for operation, reference in baselines.REFERENCES.items():
        case = Case(operation, TINY, "fp32")
        inputs = [one if one is None else one.double() for one in case.inputs("cpu")]
        expected = case.call(torch_ops.OPS, inputs)
        torch.testing.assert_close(reference(*inputs), expected, rtol=1e-12, atol=1e-12)


def test_pytest_bench_times_on_a_cpu_and_skips_what_needs_a_gpu(tmp_path):
    file = tmp_path / "benchmark.json"
    command = [sys.executable, "-m", "pytest", "bench", "-rs", "--operation", "rms_norm"]
    run = subprocess.run(
        [*command, f"--benchmark-json={file}"],
        cwd=REPOSITORY,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "triton: kernels are timed on CUDA GPUs only" in run.stdout
    benchmarks = json.loads(file.read_text())["benchmarks"]
    rows = [one["extra_info"] for one in benchmarks]
    assert {(one["implementation"], one["pass"]) for one in rows} == {
        (name, direction) for name in ("torch", "reference") for direction in timed.PASSES
    }
    for one in benchmarks:  # pytest-benchmark reports the interleaved samples
        measured = one["extra_info"]["median_us"]
        assert measured == pytest.approx(1e6 * one["stats"]["median"], 1e-3)
        assert "data" not in one["stats"]
