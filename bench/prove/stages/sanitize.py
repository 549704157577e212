"""compute-sanitizer over small grids: invalid accesses, races, reads of uninitialised memory.

    python -m bench.prove.stages.sanitize      the program that compute-sanitizer runs

The program runs every operation and step once with ragged sizes.
"""

import inspect
import os
import re
import shutil
import subprocess
import sys

import torch

import kernels
from bench.prove.stage import Outcome, failed, no_time, not_available, passed
from bench.prove.stages.repeat import seeded
from bench.results import REPOSITORY
from bench.workloads.operations import CASES, Case, Sizes, Update
from bench.workloads.steps import STEPS
from kernels import torch_ops
from kernels.common import launch

PARTS = ("memcheck", "racecheck", "initcheck")
FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
# with caching, a write past the end of one tensor would land in another tensor and go unnoticed
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
RAGGED = Sizes("ragged", B=1, T=77, C=60, H=3, V=101)
LONG = Sizes("long", B=1, T=520, C=128, H=1, V=101)  # keys read through descriptors
STEP_SIZES = {"rows": 1, "block_size": 77, "n_embd": 60, "n_head": 3, "vocab_size": 101}
DONE = "every operation and step has run"


def work(tool: str, seconds: float) -> Outcome:
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *FOLDERS))
    sanitizer = shutil.which("compute-sanitizer", path=path)
    if sanitizer is None:
        return not_available("compute-sanitizer is not installed")
    command = [sanitizer, "--tool", tool, "--print-limit", "200", sys.executable, "-m", __name__]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | UNCACHED
    try:
        run = subprocess.run(command, cwd=REPOSITORY, env=environment, timeout=seconds, **pipes)
    except subprocess.TimeoutExpired:
        return no_time()
    print(run.stdout)
    return judge(run.stdout, run.returncode)


def judge(output: str, code: int) -> Outcome:
    """Failed if an error was found in one of our kernels; others' errors are only mentioned."""
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", output)
    count = sum(map(int, summaries))
    reported = set(re.findall(r"\bat (?:void )?([\w:]+)", output))
    ours = sorted(name for name in reported if re.fullmatch(r"\w+_kernel", name))
    if count and (ours or not reported):
        return failed(f"{count} errors in {', '.join(ours) or 'an unnamed kernel'}")
    if not summaries and "not supported" in output.lower():
        return not_available("compute-sanitizer does not support this machine")
    if not summaries or DONE not in output:
        last = [line for line in output.splitlines() if line.strip()][-1:] or ["no output"]
        return failed(f"ended with {code}: {last[0]}")
    return passed(f"no errors; {count} reports in other kernels" if count else "no errors")


def main() -> None:
    device = torch.device("cuda")
    ops = kernels.load("triton", device)
    for case in cases():
        seeded(case, ops, device)()
    for step in STEPS:
        step.run(ops, device, **STEP_SIZES)
    torch.cuda.synchronize()
    print(DONE)


def cases() -> list[Case | Update]:
    found: list[Case | Update] = [Update("adamw", RAGGED)]
    for operation in dict.fromkeys(case.operation for case in CASES):
        found.append(Case(operation, RAGGED))
        if "dropout_p" in inspect.signature(getattr(torch_ops.OPS, operation)).parameters:
            found.append(Case(operation, RAGGED, options={"dropout_p": 0.2}))
    return [*found, Case("feed_forward", RAGGED, route=launch.GEMM), Case("attention", LONG)]


if __name__ == "__main__":
    main()
