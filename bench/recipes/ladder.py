"""Test, time and compile the rungs of docs/ladder, from the naive to the shipped kernel.

    python -m bench.recipes.ladder attention/3_online   test one rung, and time it on a GPU
    python -m bench.recipes.ladder                      every rung
    python -m bench.recipes.ladder --compiled FILE      compile them for sm_90; needs no GPU

A rung is a file docs/ladder/OPERATION/NUMBER_NAME.py with a function that has the operation's name
and takes the inputs of its case in `TIMED`; if its output has a gradient, it has a backward pass.
The last rung of an operation is the shipped kernel.
"""

import argparse
import runpy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from bench.baselines import Baseline
from bench.compare import Comparison, row
from bench.recipes import common
from bench.results import REPOSITORY
from bench.timer import Samples, timer_and_ceilings
from bench.workloads.operations import GPT2, Case
from bench.workloads.timed import GPT2_64K, shape
from kernels import torch_ops, triton_ops

FOLDER = REPOSITORY / "docs" / "ladder"
TIMED = {
    "layer_norm": Case("layer_norm", GPT2_64K),
    "attention": Case("attention", GPT2),
    "feed_forward": Case("feed_forward", GPT2),
    "cross_entropy": Case("cross_entropy", GPT2),
}
NO_TESTS = 5  # pytest's exit code: tests/kernels has those of the shipped kernels
PYTORCH = "PyTorch"
COMPILED_FOR = 90


class Rung(NamedTuple):
    operation: str
    name: str
    function: Callable

    def __str__(self):
        return f"{self.operation}/{self.name}"

    def run(self, ops, device) -> None:
        """Launch its kernels, like a case of the ledger; it does not use `ops`."""
        results(self.function, TIMED[self.operation].inputs(device))


def paths() -> list[Path]:
    """The files of the rungs, in order."""
    return [path for operation in TIMED for path in sorted((FOLDER / operation).glob("[0-9]_*.py"))]


def load(path: Path) -> Rung:
    operation = path.parent.name
    return Rung(operation, path.stem, runpy.run_path(str(path))[operation])


def rungs() -> list[Rung]:
    """All rungs, in order."""
    found = []
    for operation in TIMED:
        some = [load(path) for path in paths() if path.parent.name == operation]
        shipped = getattr(triton_ops.OPS, operation)
        found += [*some, Rung(operation, f"{len(some) + 1}_shipped", shipped)]
    return found


def results(function: Callable, inputs: tuple) -> list[torch.Tensor]:
    """The output, and the gradients of the inputs if it has any."""
    output = function(*inputs)
    if not output.requires_grad:
        return [output]
    leaves = [one for one in inputs if one.is_floating_point()]
    upstream = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device)
    gradients = torch.autograd.grad(output, leaves, upstream.view(output.shape))
    return [output.detach(), *gradients]


def measure(rungs: list[Rung], device: torch.device) -> list[dict]:
    """Time the rungs and PyTorch in turns; the backward of those that have one. Print the rows."""
    rows, (timer, ceilings) = [], timer_and_ceilings(device)
    for operation in dict.fromkeys(rung.operation for rung in rungs):
        functions = {rung.name: rung.function for rung in rungs if rung.operation == operation}
        functions[PYTORCH] = getattr(torch_ops, operation)
        makers = {name: partial(Baseline, function) for name, function in functions.items()}
        comparison = Comparison(TIMED[operation], makers, device, timer)
        for direction in ("forward", "both"):
            for name, one in comparison.run(direction).items():
                if isinstance(one, Samples):
                    found = row(comparison.case, direction, name, one, ceilings)
                    rows.append(common.show(found))
    return rows


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
            "widest load": widest(one["loads"]),
        }
        for rung in rungs
        for one in compiled.rows_of(str(COMPILED_FOR), [rung])
    ]


def widest(loads: dict[str, int]) -> str:
    width = "tile" if "tile" in loads else next(iter(loads), "")
    return f"{width} bytes" if width.isdigit() else width


def main(arguments: list[str] | None = None) -> int:
    known = {str(rung): rung for rung in rungs()}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rung", nargs="?", metavar="RUNG", help="default: all", choices=[*known])
    parser.add_argument("--compiled", type=Path, metavar="FILE", help="compile, write the table")
    options = parser.parse_args(arguments)
    chosen = [known[options.rung]] if options.rung else [*known.values()]
    if options.compiled:
        machine = f"triton {triton.__version__}, compiled for sm_{COMPILED_FOR}, bf16"
        common.write("ladder", compiled_rows(chosen), options.compiled, machine)
        return 0
    tests = ["tests/docs/test_ladder.py", "-s", "-k", f"fp64 and {options.rung or 'fp64'}"]
    code = subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=REPOSITORY).returncode
    if code not in (0, NO_TESTS):
        return code
    if torch.cuda.is_available():
        measure(chosen, torch.device("cuda"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
