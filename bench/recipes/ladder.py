"""The rungs of docs/ladder, from the naive kernel to the shipped: found, checked, timed, compiled.

    python docs/ladder/attention/3_online.py     check one rung, and time it where there is a card
    python -m bench.recipes.ladder                       every rung, an operation after the other
    python -m bench.recipes.ladder --compiled FILE       what the compiler makes of them for sm_90; no card

A rung is a file docs/ladder/OPERATION/NUMBER_NAME.py with a function that has the operation's name
and takes what `TIMED` gives it. What gives an output that has a gradient has a backward.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

import kernels
from bench.baselines import SPELLED_OUT
from bench.cases import GPT2, Case, Sizes
from bench.compare import row
from bench.results_file import REPOSITORY, SCHEMA, commit, write
from bench.timer import Ceilings, DeviceStopwatch, Trial, in_turns, measure_ceilings
from bench.workloads import GPT2_64K, shape
from kernels import torch_ops

FOLDER = REPOSITORY / "docs" / "ladder"
SMALL = Sizes("small", B=1, T=37, C=48, H=3, V=101)  # odd where the rungs allow it
TIMED = {
    "layer_norm": Case("layer_norm", GPT2_64K),
    "attention": Case("attention", GPT2),
    "feed_forward": Case("feed_forward", GPT2),
    "cross_entropy": Case("cross_entropy", GPT2),
}
FACTOR = 2.0  # times PyTorch's own error: what the kernels promise
SECONDS = 0.3  # of timing, per rung and pass
PYTORCH = "PyTorch"
COMPILED_FOR = 90


class Rung(NamedTuple):
    operation: str
    name: str
    function: Callable

    def __str__(self):
        return f"{self.operation}/{self.name}"

    def run(self, ops, device) -> None:
        """As a case of the ledger, whose table of operations it has no use for."""
        results(self.function, TIMED[self.operation].inputs(device))


def paths(folder: Path = FOLDER) -> list[Path]:
    """The files of all rungs, in the order in which they are climbed."""
    found = folder.glob("*/[0-9]*_*.py")
    order = list(TIMED)
    return sorted(found, key=lambda p: (order.index(p.parent.name), int(p.stem.partition("_")[0])))


def load(path: Path) -> Rung:
    operation = path.parent.name
    spec = importlib.util.spec_from_file_location(f"ladder.{operation}.{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Rung(operation, path.stem, getattr(module, operation))


def results(function: Callable, inputs: tuple) -> list[torch.Tensor]:
    """The output, and the gradients of all inputs where it has any."""
    output = function(*inputs)
    if not output.requires_grad:
        return [output]
    leaves = [one for one in inputs if one.is_floating_point()]
    upstream = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device)
    gradients = torch.autograd.grad(output, leaves, upstream.view(output.shape))
    return [output.detach(), *gradients]


class Errors(NamedTuple):
    """The largest over values and gradients, as shares of the largest exact number."""

    ours: float
    pytorch: float
    is_right: bool


def check(rung: Rung, device: torch.device, sizes: Sizes = SMALL) -> Errors:
    """A rung against fp64, beside PyTorch's computation of the same operands in their dtype."""
    precision = "bf16" if device.type == "cuda" else "fp32"
    torch.manual_seed(0)
    inputs = TIMED[rung.operation]._replace(sizes=sizes, precision=precision).inputs(device)
    wide = tuple(
        one.detach().double().requires_grad_() if one.is_floating_point() else one for one in inputs
    )
    plain = SPELLED_OUT.get(rung.operation, getattr(torch_ops, rung.operation))
    actual = results(rung.function, inputs)
    expected, pytorch = results(plain, wide), results(plain, inputs)
    worst = Errors(0.0, 0.0, True)
    for one, exact, baseline in zip(actual, expected, pytorch, strict=False):
        largest = exact.abs().max().item()
        errors = [(value.double() - exact).abs().max().item() for value in (one, baseline)]
        allowed = FACTOR * errors[1] + 4 * torch.finfo(torch.float32).eps * largest
        ours, theirs = (error / largest for error in errors)
        is_right = worst.is_right and errors[0] <= allowed  # False where it is NaN
        worst = Errors(max(worst.ours, ours), max(worst.pytorch, theirs), is_right)
    return worst


def measure(
    rungs: list[Rung], device: torch.device, watch, ceilings: Ceilings, seconds: float
) -> list[dict]:
    """Rows of figures of rungs of one operation and of PyTorch, timed in turns within `seconds`."""
    case = TIMED[rungs[0].operation]
    inputs = case.inputs(device)
    functions = {rung.name: rung.function for rung in rungs}
    functions[PYTORCH] = getattr(torch_ops, case.operation)
    trained = {name: one for name, one in functions.items() if one(*inputs).requires_grad}
    passes = {"forward": (functions, torch.no_grad()(_forward)), "both": (trained, results)}
    rows = []
    for direction, (chosen, call) in passes.items():
        trials = {name: Trial(partial(call, one, inputs)) for name, one in chosen.items()}
        samples = in_turns(trials, watch, seconds / len(passes))
        rows += [row(case, direction, name, one, ceilings) for name, one in samples.items()]
    return rows


def _forward(function, inputs):
    return function(*inputs)


def told(figures: dict) -> str:
    """A row of figures in a line for people."""
    rate = f"{figures['tflop_s']:,.1f} TFLOP/s" if "tflop_s" in figures else ""
    rate = rate or f"{figures['gb_s']:,.0f} GB/s"
    return (
        f"{figures['rival']}, {figures['pass']}, {figures['shape']}: "
        f"{figures['median_us']:,.0f} µs, {rate}, {100 * figures['ceiling']:.0f}% of the ceiling"
    )


def show(file: str, function: Callable) -> None:
    """What a rung does as a program: check itself, and where there is a card, be timed."""
    path = Path(file)
    sys.exit(_show([Rung(path.parent.resolve().name, path.stem, function)]))


def _show(rungs: list[Rung]) -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if reason := kernels.unavailable_reason(device):
        print(f"{reason}; to check the kernels in the interpreter, set TRITON_INTERPRET=1")
        return 2
    wrong = []
    for rung in rungs:
        errors = check(rung, device)
        verdict = "right" if errors.is_right else "WRONG"
        print(f"{rung}: {verdict}, error {errors.ours:.1e}, PyTorch's {errors.pytorch:.1e}")
        wrong += [] if errors.is_right else [rung]
    if device.type == "cuda":
        watch = DeviceStopwatch(device)
        ceilings = measure_ceilings(device, watch)
        for operation in dict.fromkeys(rung.operation for rung in rungs):
            some = [rung for rung in rungs if rung.operation == operation]
            for figures in measure(some, device, watch, ceilings, 2 * SECONDS * (len(some) + 1)):
                print(told(figures))
    return 1 if wrong else 0


# --- what the compiler makes of them --------------------------------------------------------------


def compiled_rows(rungs: list[Rung]) -> list[dict]:
    """A row for every kernel that a rung launches, forward and backward, compiled ahead of time."""
    from bench.ledger import compiled

    target = compiled.parse_target(str(COMPILED_FOR))
    rows = []
    for rung in rungs:
        for one in compiled.rows(compiled.record(rung, COMPILED_FOR), target):
            rows.append(
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
                    "widest load": "tile" if "tile" in one["loads"] else _bytes(one["loads"]),
                }
            )
    return rows


def _bytes(loads: dict[str, int]) -> str:
    return f"{next(iter(loads))} bytes" if loads else ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.recipes.ladder", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--compiled", type=Path, metavar="FILE", help="compile, write the table")
    options = parser.parse_args(arguments)
    rungs = [load(path) for path in paths()]
    if options.compiled is None:
        return _show(rungs)
    import triton

    head = {"schema": SCHEMA, "table": "ladder", "date": date.today().isoformat()}
    head |= {"machine": f"triton {triton.__version__}, compiled for sm_{COMPILED_FOR}, bf16"}
    write(options.compiled, {**head, "commit": commit(), "rows": compiled_rows(rungs)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
