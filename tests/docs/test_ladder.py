"""Every rung of docs/ladder, as found in the tree: right, complete, and runnable as it says."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels
from bench.cases import Sizes
from bench.prove.stages import ladder as stage
from bench.recipes import ladder
from bench.recipes.ladder import Rung
from bench.results_file import REPOSITORY
from bench.timer import Ceilings, HostStopwatch
from kernels import torch_ops
from tests.kernels.attention.plain_attention import plain_attention
from tests.numerics import DEVICE, assert_deterministic, hold_against, randn

PATHS = ladder.paths()
ORACLES = {"attention": plain_attention}
SAME_DTYPE = ("attention", "feed_forward")  # they round in the middle, as their baseline does
# on a card products of fp32 would need more shared memory than some have
DTYPES = (torch.float32 if DEVICE == "cpu" else torch.float16, torch.bfloat16)
CEILINGS = Ceilings(1e12, 1e15)


def name(path):
    return f"{path.parent.name}/{path.stem}"


load = functools.cache(ladder.load)


def operands(operation, dtype):
    """Odd sizes, but whole vectors where a descriptor needs them."""
    made = {
        "layer_norm": lambda: (randn(5, 33, dtype=dtype), *parameters(33)),
        "attention": lambda: tuple(randn(1, 1, 67, 16, dtype=dtype, seed=i) for i in range(3)),
        "feed_forward": lambda: (randn(1, 3, 16, dtype=dtype), *weights(16, 24), *weights(24, 16)),
        "cross_entropy": lambda: (
            randn(2, 3, 67, dtype=dtype),
            torch.tensor([[0, 66, 13], [5, 5, 40]], device=DEVICE),
        ),
    }

    def parameters(C):
        return randn(C, dtype=dtype, seed=1), randn(C, dtype=dtype, seed=2)

    def weights(K, N):
        return randn(N, K, dtype=dtype, seed=K, scale=K**-0.5), randn(N, dtype=dtype, seed=N)

    return made[operation]()


# --- right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS, ids=name)
def test_a_rung_is_right(path, dtype):
    """Values, and gradients where it has any, against fp64; its memory between guards."""
    rung = load(path)
    hold_against(
        rung.function,
        ORACLES.get(rung.operation, getattr(torch_ops, rung.operation)),
        operands(rung.operation, dtype),
        backward="shipped" in rung.name or "autograd.Function" in path.read_text(),
        out_dtype=torch.float32 if rung.operation == "cross_entropy" else None,
        compute=dtype if rung.operation in SAME_DTYPE else None,
        gradient_factor=3.0 if rung.operation == "attention" else None,
    )


@pytest.mark.parametrize("operation", ladder.TIMED)
def test_the_shipped_rung_is_the_kernel_of_the_table(operation):
    *_, last = [path for path in PATHS if path.parent.name == operation]
    assert load(last).function is getattr(kernels.load("triton", DEVICE), operation)


def test_the_rung_that_sums_over_rows_gives_the_same_bits():
    (path,) = [path for path in PATHS if name(path) == "layer_norm/5_backward"]
    leaves = [one.requires_grad_() for one in operands("layer_norm", torch.float32)]
    assert_deterministic(lambda: tuple(ladder.results(load(path).function, tuple(leaves))))


# --- complete -------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ladder.TIMED)
def test_the_rungs_follow_each_other(operation):
    found = [path for path in PATHS if path.parent.name == operation]
    assert 4 <= len(found) <= 6
    assert [path.stem.partition("_")[0] for path in found] == [
        str(number + 1) for number in range(len(found))
    ]
    readme = (ladder.FOLDER / "README.md").read_text()
    for number, path in enumerate(found, 1):
        text = path.read_text()
        assert f"rung {number}: " in text.partition("\n")[0]
        assert ("\nWhat is wrong: " in text and "\nNext: " in text) == (path is not found[-1])
        assert text.count("\n") <= 100
        assert f"{number}. [" in readme
        assert f"({name(path)}.py)" in readme


def test_no_operation_is_without_a_case():
    assert {path.parent.name for path in ladder.FOLDER.glob("*/*.py")} == set(ladder.TIMED)


# --- run ------------------------------------------------------------------------------------------


def test_a_rung_runs_as_a_program():
    path = ladder.FOLDER / "layer_norm" / "3_one_read.py"
    installed = os.environ | {"PYTHONPATH": str(REPOSITORY)}  # or as good as
    run = subprocess.run([sys.executable, path], capture_output=True, text=True, env=installed)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("layer_norm/3_one_read: right, error ")


def test_where_kernels_cannot_run_it_says_what_to_set(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "unavailable_reason", lambda device: "PyTorch sees no CUDA card")
    with pytest.raises(SystemExit) as ended:
        ladder.show("layer_norm/x.py", torch_ops.layer_norm)
    assert ended.value.code == 2
    assert "PyTorch sees no CUDA card; to check" in capsys.readouterr().out


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_wrong_rung_is_found(factor):
    wrong = Rung(
        "layer_norm", "1_wrong", lambda *operands: factor * torch_ops.layer_norm(*operands)
    )
    assert not ladder.check(wrong, torch.device(DEVICE)).is_right


# --- timed ----------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    case = ladder.TIMED["layer_norm"]._replace(sizes=Sizes("tiny", 1, 4, 8, 1, 5), precision="fp32")
    monkeypatch.setitem(ladder.TIMED, "layer_norm", case)


def test_rungs_are_timed_beside_pytorch_and_those_with_a_gradient_twice(tiny):
    @torch.no_grad()
    def without(x, weight, bias):
        return torch_ops.layer_norm(x, weight, bias)

    rungs = [Rung("layer_norm", "1_a", without), Rung("layer_norm", "2_b", torch_ops.layer_norm)]
    rows = ladder.measure(rungs, torch.device("cpu"), HostStopwatch(), CEILINGS, seconds=0)
    assert [(row["pass"], row["rival"]) for row in rows] == [
        ("forward", "1_a"),
        ("forward", "2_b"),
        ("forward", "PyTorch"),
        ("both", "2_b"),
        ("both", "PyTorch"),
    ]
    for row in rows:
        seconds = 1e-6 * row["median_us"]
        assert row["ceiling"] == pytest.approx(1e9 * row["gb_s"] / 1e12, rel=0.01)
        moved = 4 * 4 * 8 * {"forward": 2, "both": 5}[row["pass"]]
        assert row["gb_s"] == pytest.approx(moved / seconds / 1e9, rel=0.01)
    assert ladder.told(rows[0]).startswith("1_a, forward, 4 x 8: ")


def test_the_stage_tells_of_a_wrong_rung_and_times_the_others(tiny, monkeypatch):
    rungs = [
        Rung("layer_norm", "1_wrong", lambda *operands: 2 * torch_ops.layer_norm(*operands)),
        Rung("layer_norm", "2_broken", lambda x, weight, bias: x @ x),
        Rung("layer_norm", "3_right", torch_ops.layer_norm),
    ]
    by_path = {Path("layer_norm", rung.name): rung for rung in rungs}
    monkeypatch.setattr(ladder, "paths", lambda: list(by_path))
    monkeypatch.setattr(ladder, "load", by_path.get)
    monkeypatch.setattr(stage, "DeviceStopwatch", lambda device: HostStopwatch())
    monkeypatch.setattr(stage, "measure_ceilings", lambda device, watch: CEILINGS)
    outcome = stage.work("layer_norm", 0.0, torch.device("cpu"))
    assert outcome["state"] == "failed"
    assert outcome["lines"][0].startswith("layer_norm/1_wrong: error ")
    assert outcome["lines"][1].startswith("layer_norm/2_broken: RuntimeError: ")
    assert {row["rival"] for row in outcome["figures"]} == {"3_right", "PyTorch"}


# --- compiled -------------------------------------------------------------------------------------

COMPILE = """
from bench import ladder
path, = [path for path in ladder.paths() if path.stem == "2_tensor_cores"]
row, = ladder.compiled_rows([ladder.load(path)])
print(row["rung"], row["kernel"], row["tensor-core"] > 0, row["spills"], row["widest load"])
"""


def test_a_rung_is_compiled_for_a_card_that_is_not_there():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["2_tensor_cores", "`_linear`", "True", "0", "16", "bytes"]
