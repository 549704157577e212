"""Check, time and compile the rungs of docs/ladder, from the naive to the shipped kernel.

    python docs/ladder/attention/3_online.py         check one rung, and time it on a GPU
    python -m bench.recipes.ladder                   every rung
    python -m bench.recipes.ladder --compiled FILE   compile them for sm_90; needs no GPU

A rung is a file docs/ladder/OPERATION/NUMBER_NAME.py with a function that has the operation's name
and takes the inputs of its case in `TIMED`; if its output has a gradient, it has a backward pass.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

import kernels
from bench.baselines import REFERENCES
from bench.compare import row
from bench.recipes import common
from bench.results import REPOSITORY
from bench.timer import Ceilings, DeviceTimer, Trial, measure_ceilings, time_interleaved
from bench.workloads.operations import GPT2, Case, Sizes
from bench.workloads.timed import GPT2_64K, shape
from kernels import torch_ops

FOLDER = REPOSITORY / "docs" / "ladder"
SMALL = Sizes("small", B=1, T=37, C=48, H=3, V=101)  # odd where the rungs support it
TIMED = {
    "layer_norm": Case("layer_norm", GPT2_64K),
    "attention": Case("attention", GPT2),
    "feed_forward": Case("feed_forward", GPT2),
    "cross_entropy": Case("cross_entropy", GPT2),
}
FACTOR = 2.0  # the error allowed, relative to PyTorch's
SECONDS = 0.3  # of timing, per rung and pass
PYTORCH = "PyTorch"
COMPILED_FOR = "90"  # sm_90


class Rung(NamedTuple):
    operation: str
    name: str
    function: Callable

    def __str__(self):
        return f"{self.operation}/{self.name}"

    def run(self, ops, device) -> None:
        """Launch its kernels, like a case of the ledger; it does not use `ops`."""
        results(self.function, TIMED[self.operation].inputs(device))


def paths(folder: Path = FOLDER) -> list[Path]:
    """The files of all rungs, in order."""
    found, order = folder.glob("*/[0-9]*_*.py"), list(TIMED)
    return sorted(found, key=lambda p: (order.index(p.parent.name), int(p.stem.partition("_")[0])))


def load(path: Path) -> Rung:
    operation = path.parent.name
    spec = importlib.util.spec_from_file_location(f"ladder.{operation}.{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Rung(operation, path.stem, getattr(module, operation))


def results(function: Callable, inputs: tuple) -> list[torch.Tensor]:
    """The output, and the gradients of the inputs if it has any."""
    output = function(*inputs)
    if not output.requires_grad:
        return [output]
    leaves = [one for one in inputs if one.is_floating_point()]
    upstream = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device)
    gradients = torch.autograd.grad(output, leaves, upstream.view(output.shape))
    return [output.detach(), *gradients]


class Errors(NamedTuple):
    """The largest errors of values and gradients, relative to the largest exact value."""

    ours: float
    pytorch: float
    is_right: bool


def check(rung: Rung, device: torch.device, sizes: Sizes = SMALL) -> Errors:
    """Compare a rung, and PyTorch with the same inputs in the same dtype, with fp64."""
    precision = "bf16" if device.type == "cuda" else "fp32"
    torch.manual_seed(0)
    inputs = TIMED[rung.operation]._replace(sizes=sizes, precision=precision).inputs(device)
    wide = tuple(
        one.detach().double().requires_grad_() if one.is_floating_point() else one for one in inputs
    )
    plain = REFERENCES.get(rung.operation, getattr(torch_ops, rung.operation))
    actual = results(rung.function, inputs)
    expected, pytorch = results(plain, wide), results(plain, inputs)
    worst = Errors(0.0, 0.0, True)
    for one, exact, baseline in zip(actual, expected, pytorch, strict=False):
        largest = exact.abs().max().item()
        errors = [(value.double() - exact).abs().max().item() for value in (one, baseline)]
        allowed = FACTOR * errors[1] + 4 * torch.finfo(torch.float32).eps * largest
        ours, theirs = (error / largest for error in errors)
        is_right = worst.is_right and errors[0] <= allowed  # False for NaN
        worst = Errors(max(worst.ours, ours), max(worst.pytorch, theirs), is_right)
    return worst


def measure(
    rungs: list[Rung], device: torch.device, timer, ceilings: Ceilings, seconds: float
) -> list[dict]:
    """Time the rungs of one operation and PyTorch in turns, for about `seconds` in total."""
    case = TIMED[rungs[0].operation]
    inputs = case.inputs(device)
    functions = {rung.name: rung.function for rung in rungs}
    functions[PYTORCH] = getattr(torch_ops, case.operation)
    trained = {name: one for name, one in functions.items() if one(*inputs).requires_grad}
    forward = torch.no_grad()(lambda function, inputs: function(*inputs))
    rows = []
    for direction, chosen, call in (("forward", functions, forward), ("both", trained, results)):
        trials = {name: Trial(partial(call, one, inputs)) for name, one in chosen.items()}
        samples = time_interleaved(trials, timer, seconds / 2)
        rows += [row(case, direction, name, one, ceilings) for name, one in samples.items()]
    return rows


def describe(row: dict) -> str:
    rate = f"{row['tflop_s']:,.1f} TFLOP/s" if "tflop_s" in row else f"{row['gb_s']:,.0f} GB/s"
    return (
        f"{row['implementation']}, {row['pass']}, {row['shape']}: "
        f"{row['median_us']:,.0f} µs, {rate}, {100 * row['ceiling']:.0f}% of peak"
    )


def show(file: str, function: Callable) -> None:
    """The main program of a rung: check it, and time it on a GPU."""
    path = Path(file)
    sys.exit(check_and_time([Rung(path.parent.resolve().name, path.stem, function)]))


def check_and_time(rungs: list[Rung]) -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if reason := kernels.unavailable_reason(device):
        print(f"{reason}; to check the kernels in the interpreter, set TRITON_INTERPRET=1")
        return 2
    all_right = True
    for rung in rungs:
        errors = check(rung, device)
        verdict = "right" if errors.is_right else "WRONG"
        print(f"{rung}: {verdict}, error {errors.ours:.1e}, PyTorch's {errors.pytorch:.1e}")
        all_right = all_right and errors.is_right
    if device.type == "cuda":
        timer = DeviceTimer(device)
        ceilings = measure_ceilings(device, timer)
        for operation in dict.fromkeys(rung.operation for rung in rungs):
            some = [rung for rung in rungs if rung.operation == operation]
            for one in measure(some, device, timer, ceilings, 2 * SECONDS * (len(some) + 1)):
                print(describe(one))
    return 0 if all_right else 1


def compiled_rows(rungs: list[Rung]) -> list[dict]:
    """A row for every kernel that a rung launches, compiled ahead of time."""
    from bench.ledger import compiled

    return [
        {
            "operation": rung.operation,
            "shape": shape(TIMED[rung.operation]),
            "rung": rung.name,
            "kernel": f"`{one['key'].partition('(')[0].rpartition('.')[2]}`",
            "registers": one["registers"],
            "spills": one["spills"],
            "shared bytes": f"{one['shared']:,}",
            "instructions": f"{one['instructions']:,}",
            "tensor-core": sum(one["tensor"].values()),
            "widest load": "tile" if "tile" in one["loads"] else widest(one["loads"]),
        }
        for rung in rungs
        for one in compiled.rows(compiled.record(rung, int(COMPILED_FOR)), COMPILED_FOR)
    ]


def widest(loads: dict[str, int]) -> str:
    return f"{next(iter(loads))} bytes" if loads else ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--compiled", type=Path, metavar="FILE", help="compile, write the table")
    options = parser.parse_args(arguments)
    rungs = [load(path) for path in paths()]
    if options.compiled is None:
        return check_and_time(rungs)
    import triton

    machine = f"triton {triton.__version__}, compiled for sm_{COMPILED_FOR}, bf16"
    common.write("ladder", compiled_rows(rungs), options.compiled, machine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
