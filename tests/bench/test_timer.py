"""Timing with a fake clock, the minimal work against PyTorch's count, and `pytest bench` itself."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import timer
from bench.baselines import Baseline
from bench.compare import Comparison, Failed, row
from bench.timer import Ceilings, HostTimer, Samples, Trial
from bench.workloads import timed
from bench.workloads.operations import Case, Sizes
from kernels import torch_ops

TINY = Sizes("tiny", B=2, T=6, C=8, H=2, V=11)
CPU = torch.device("cpu")
NORM = Case("layer_norm", TINY, "fp32")


@pytest.mark.parametrize(
    ("host", "expected"),
    [(1e-4, [1e-3]), (3e-3, [1e-3, 2e-3, 4e-3]), (1.0, [1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 20e-3])],
)
def test_device_sleeps_until_the_call_is_enqueued(monkeypatch, host, expected):
    sleeps = []
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    event.query, event.elapsed_time = lambda: host > sleeps[-1], lambda end: 1e3 * len(sleeps)
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda n: sleeps.append(n / timer.CYCLES_PER_SECOND))
    calls = []
    trial = Trial(lambda x: calls.append(x), before=lambda: ("prepared",))
    seconds = timer.DeviceTimer(CPU)(trial, host=0.5e-3 - timer.MARGIN)
    assert sleeps == pytest.approx(expected)
    assert calls == ["prepared"] * len(sleeps)
    assert seconds == len(sleeps)  # the last call counts


def test_row_has_rates_and_the_share_of_the_ceiling():
    samples = Samples([n * 4e-8 for n in range(101)], 1e-6)
    result = row(NORM, "forward", "torch", samples, Ceilings(1e9, 1e12))
    moved = 2 * 2 * 6 * 8 * 4  # x read, y written
    assert result["gb_s"] == pytest.approx(moved / 2e-6 / 1e9, rel=1e-3)
    assert result["ceiling"] == pytest.approx(moved / 1e9 / 2e-6, rel=1e-3)
    assert (result["p20_us"], result["median_us"], result["p80_us"]) == (0.8, 2, 3.2)
    assert (result["host_us"], result["rounds"]) == (1, 101)
    assert "tflop_s" not in result
    case = Case("attention", TINY, "fp32")
    result = row(case, "forward", "torch", Samples([2e-6], 1e-6), Ceilings(1e12, 1e9))
    slowest = timed.work(case)["forward"].flops / 1e9
    assert result["ceiling"] == pytest.approx(slowest / 2e-6, rel=1e-3)


def test_implementations_do_not_disturb_each_other():
    """One raises, and one that writes its inputs gets copies of them."""

    def fails(x, weight, bias):
        raise RuntimeError("no kernel\nfor this")

    def writes(x, weight, bias):
        x.data.zero_()
        return x * weight + bias

    makers = {"fails": lambda: Baseline(fails), "torch": lambda: Baseline(torch_ops.layer_norm)}
    makers["writes"] = lambda: Baseline(writes, writes_inputs=True)
    comparison = Comparison(NORM, makers, CPU, HostTimer())
    x = comparison.inputs[0].detach().clone()
    for direction in timed.PASSES:
        result = comparison.run(direction)
        assert result["fails"].reason == "RuntimeError: no kernel"
        assert not isinstance(result["writes"], Failed)
        assert len(result["torch"].seconds) >= timer.MIN_ROUNDS
    assert torch.equal(comparison.inputs[0], x)


@pytest.mark.parametrize("operation", ["attention", "attention_qkv", "feed_forward"])
def test_flops_are_those_that_pytorch_counts(operation):
    case = Case(operation, TINY, "fp32")
    inputs = case.inputs("meta")
    leaves = [one for one in inputs if isinstance(one, torch.Tensor)]
    with FlopCounterMode(display=False) as forward:
        out = getattr(torch_ops, operation)(*inputs)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(out, leaves, torch.empty_like(out))
    work = timed.work(case)
    # PyTorch counts the whole square of attention, and four products where a backward pass that
    # recomputes the weights needs five
    square, products = (1, 1) if operation == "feed_forward" else (2, 5 / 4)
    assert square * work["forward"].flops == forward.get_total_flops()
    assert square * work["backward"].flops == products * backward.get_total_flops()


@pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU")
def test_pytest_bench_times_on_a_cpu_and_skips_what_needs_a_gpu(tmp_path, capsys):
    path = tmp_path / "benchmark.json"
    arguments = ["-k", "rms_norm", "-rs", "-p", "no:cacheprovider", f"--benchmark-json={path}"]
    assert pytest.main(["bench", *arguments]) == 0, capsys.readouterr().out
    assert "triton: it is timed on CUDA GPUs only" in capsys.readouterr().out
    rows = [one["extra_info"] for one in json.loads(path.read_text())["benchmarks"]]
    rounds = {(row["pass"], row["implementation"]): row["rounds"] for row in rows}
    assert rounds.keys() == {(one, name) for one in timed.PASSES for name in ("torch", "reference")}
    assert all(rounds[one, "torch"] == rounds[one, "reference"] for one in timed.PASSES)
