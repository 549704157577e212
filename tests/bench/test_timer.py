"""Timing with clocks that stand still unless told, and the least work against PyTorch's count."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import baselines, workloads
from bench.baselines import Rival
from bench.cases import Case, Sizes
from bench.compare import Failed, Race, row
from bench.results_file import REPOSITORY
from bench.steps import TrainingStep
from bench.timer import (
    LEAST_ROUNDS,
    LONGEST_HEAD_START,
    MOST_ROUNDS,
    Ceilings,
    HostStopwatch,
    Replay,
    Samples,
    Trial,
    asleep_throughout,
    head_start,
    in_turns,
    spread,
)
from kernels import torch_ops, triton_ops
from kernels.common import launch

TINY = Sizes("tiny", B=2, T=6, C=8, H=2, V=11)
CPU = torch.device("cpu")


class Watch:
    """Says what each trial takes, and remembers who was timed; the clock moves by a second."""

    def __init__(self):
        self.timed, self.now, self.warm_ups = [], 0.0, iter([9.0] * 3 + [1.0, 3.0, 2.0] * 100)

    def host_seconds(self, trial):
        return next(self.warm_ups)

    def __call__(self, trial, host):
        self.timed.append((trial.call(), host))
        self.now += 1.0
        return float(len(self.timed))


def _trials():
    return {"a": Trial(lambda: "a"), "b": Trial(lambda: "b")}


def test_rivals_are_timed_in_turns():
    watch = Watch()
    samples = in_turns(_trials(), watch, seconds=100, clock=lambda: watch.now)
    assert [name for name, _ in watch.timed] == ["a", "b"] * 50
    assert samples["a"].seconds == [float(n) for n in range(1, 101, 2)]
    assert samples["b"].seconds == [float(n) for n in range(2, 101, 2)]


def test_timing_stops_with_the_seconds_but_not_before_the_least_rounds():
    watch = Watch()
    assert len(in_turns(_trials(), watch, 0, lambda: watch.now)["a"].seconds) == LEAST_ROUNDS
    watch = Watch()
    assert len(in_turns(_trials(), watch, 1e9, lambda: watch.now)["b"].seconds) == MOST_ROUNDS


def test_the_host_time_is_a_median_after_the_first_calls():
    samples = in_turns({"a": Trial(lambda: None)}, Watch(), 0, lambda: 0.0)
    assert samples["a"].host == 2.0  # of 1, 3, 2; the first three calls, 9 s each, do not count


def test_spread_is_the_median_and_two_percentiles():
    assert spread([float(n) for n in range(101)]) == (50, 20, 80)
    assert spread([7.0]) == (7, 7, 7)


def test_the_device_sleeps_longer_than_the_host_needs():
    assert head_start(1e-3) > 1e-3
    assert head_start(10.0) == LONGEST_HEAD_START


@pytest.mark.parametrize(
    ("host", "slept"),
    [(1e-4, [1e-3]), (3e-3, [1e-3, 2e-3, 4e-3]), (1.0, [1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 20e-3])],
)
def test_a_call_in_which_the_device_wakes_is_timed_again(host, slept):
    """What the host takes beyond the sleep is no time of the device's, and is not returned."""
    sleeps = []

    def behind(sleep):
        sleeps.append(sleep)
        return 5e-6 + max(0.0, host - sleep), host > sleep

    seconds = asleep_throughout(behind, 1e-3)
    assert sleeps == pytest.approx(slept)
    assert seconds == pytest.approx(5e-6 + max(0.0, host - LONGEST_HEAD_START))


def test_the_floor_is_the_slower_of_copy_and_product():
    ceilings = Ceilings(copy_bytes_per_second=100.0, matmul_flops_per_second=1000.0)
    assert ceilings.floor(200, 0) == 2
    assert ceilings.floor(200, 5000) == 5


def test_replay_stands_still_unless_advanced():
    clock = Replay()
    before = clock()
    assert clock() == before
    clock.advance(0.25)
    assert clock() - before == 0.25


def test_the_host_stopwatch_does_not_time_what_comes_before():
    order = []
    trial = Trial(call=lambda value: order.append(value), before=lambda: order.append("b") or "c")
    assert HostStopwatch()(trial, 0.0) >= 0
    assert order == ["b", "c"]


def test_a_row_holds_rates_and_the_share_of_the_ceiling():
    case = Case("layer_norm", TINY, "fp32")
    figures = row(case, "forward", "torch", Samples([2e-6], 1e-6), Ceilings(1e9, 1e12))
    moved = 2 * 2 * 6 * 8 * 4  # x read, y written
    assert figures["gb_s"] == pytest.approx(moved / 2e-6 / 1e9, rel=1e-3)
    assert figures["ceiling"] == pytest.approx(moved / 1e9 / 2e-6, rel=1e-3)
    assert (figures["median_us"], figures["host_us"], figures["rounds"]) == (2, 1, 1)
    assert "tflop_s" not in figures


def test_a_rival_that_fails_is_told_and_the_others_are_timed():
    def fails(x, weight, bias):
        raise RuntimeError("no kernel\nfor this")

    makers = {"fails": lambda: Rival(fails), "torch": lambda: Rival(torch_ops.layer_norm)}
    race = Race(Case("layer_norm", TINY, "fp32"), makers, CPU, HostStopwatch())
    for direction in workloads.PASSES:
        result = race.run(direction)
        assert result["fails"].reason == "RuntimeError: no kernel"
        assert len(result["torch"].seconds) >= LEAST_ROUNDS


def test_a_rival_that_writes_into_its_inputs_gets_its_own():
    def writes(x, weight, bias):
        x.data.zero_()
        return x * weight + bias

    race = Race(
        Case("layer_norm", TINY, "fp32"),
        {"writes": lambda: Rival(writes, own_inputs=True)},
        CPU,
        HostStopwatch(),
    )
    x = race.inputs[0].detach().clone()
    assert not isinstance(race.run("both")["writes"], Failed)
    assert torch.equal(race.inputs[0], x)


@pytest.mark.parametrize("operation", ["attention", "attention_qkv", "feed_forward"])
def test_flops_are_what_pytorch_counts(operation):
    case = Case(operation, TINY, "fp32")
    inputs = case.inputs("meta")
    leaves = [one for one in inputs if isinstance(one, torch.Tensor)]
    with FlopCounterMode(display=False) as forward:
        out = case.call(torch_ops.OPS, inputs)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(out, leaves, torch.empty_like(out))
    work = workloads.work(case)
    # PyTorch counts the whole square, and four products where a backward without the stored
    # weights needs five
    square, again = (1, 1) if operation == "feed_forward" else (2, 5 / 4)
    assert square * work["forward"].flops == forward.get_total_flops()
    assert square * work["backward"].flops == again * backward.get_total_flops()


@pytest.mark.parametrize(
    "case", workloads.CARD, ids=lambda case: f"{case.operation} {case.sizes.name}"
)
def test_every_case_for_the_card_has_work_a_shape_and_rivals(case):
    assert all(work.bytes > 0 for work in workloads.work(case).values())
    assert workloads.shape(case)
    assert {baselines.OURS, "torch"} <= baselines.rivals(case, CPU).keys()


@pytest.mark.parametrize("preset", ["lecture", "gpt2"])
def test_what_a_training_step_calls_is_timed_on_the_same_operands(preset):
    """Every operation of the recorded step, at its shapes, dtypes, dropout and activation."""
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
        for case in workloads.STEPS
    }
    assert len(called) == 6
    for operation, operands, options in called:
        assert any(
            (operation, options) == (name, given)
            # a case may have a bias more
            and all(one in (None, other) for one, other in zip(operands, others, strict=True))
            for name, others, given in cases
        ), (operation, operands, options)


def _described(operands, options):
    """What decides how an operation is launched, besides what every step leaves as it is."""
    operands = tuple(
        (tuple(one.shape), one.dtype) if isinstance(one, torch.Tensor) else one for one in operands
    )
    chosen = {name: options.get(name) for name in ("activation", "x_bias")}
    chosen["x_bias"] = chosen["x_bias"] is not None
    return operands, (*chosen.items(), ("dropout_p", options.get("dropout_p") or 0.0))


def test_two_cases_never_share_a_line_of_a_table():
    lines = [(case.operation, workloads.shape(case), case.precision) for case in workloads.CARD]
    assert len(set(lines)) == len(lines)


def test_rivals_that_cannot_run_on_a_cpu_say_why():
    found = baselines.rivals(Case("attention", TINY), CPU)
    assert all(isinstance(found[name], str) for name in (baselines.OURS, *baselines.SDPA))
    assert not isinstance(found["torch"], str)


def test_the_spelled_out_rivals_compute_the_same():
    for operation, spelled_out in baselines.SPELLED_OUT.items():
        case = Case(operation, TINY, "fp32")
        inputs = [one.double() if _is_float(one) else one for one in case.inputs("cpu")]
        expected = case.call(torch_ops.OPS, inputs)
        torch.testing.assert_close(spelled_out(*inputs), expected, rtol=1e-12, atol=1e-12)


def _is_float(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def test_pytest_bench_times_on_a_cpu_and_skips_the_rest_with_the_reason(tmp_path):
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
    assert "triton: " in run.stdout
    rows = [one["extra_info"] for one in json.loads(file.read_text())["benchmarks"]]
    assert {(one["rival"], one["pass"]) for one in rows} == {
        (rival, direction) for rival in ("torch", "reference") for direction in workloads.PASSES
    }
    stats = json.loads(file.read_text())["benchmarks"][0]
    assert stats["extra_info"]["median_us"] == pytest.approx(1e6 * stats["stats"]["median"], 1e-3)
    assert "data" not in stats["stats"]  # no single samples
