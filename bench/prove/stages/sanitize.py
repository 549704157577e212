"""compute-sanitizer's tools over the smallest grids: bad accesses, races, reads of nothing."""

import os
import re
import shutil
import subprocess
import sys

from bench.prove.stages import Outcome, failed, no_time, not_there, passed, sanitizer_workload
from bench.results_file import REPOSITORY

TOOLS = ("memcheck", "racecheck", "initcheck")
PROGRAM = (sys.executable, "-m", "bench.prove.stages.sanitizer_workload")
PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
# every tensor its own allocation, or a write past one lands unseen in the next
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def work(tool: str, seconds: float) -> Outcome:
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *PLACES))
    sanitizer = shutil.which("compute-sanitizer", path=path)
    if sanitizer is None:
        return not_there("compute-sanitizer is not installed")
    command = [sanitizer, "--tool", tool, "--print-limit", "200", *PROGRAM]
    try:
        run = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=os.environ | UNCACHED,
            timeout=seconds,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except subprocess.TimeoutExpired:
        return no_time()
    print(run.stdout)
    return judge(run.stdout, run.returncode)


def judge(output: str, code: int) -> Outcome:
    """What the tool has found, told apart by whose kernels it was found in."""
    errors = [int(number) for number in re.findall(r"ERROR SUMMARY: (\d+) error", output)]
    errors += [int(number) for number in re.findall(r"RACECHECK SUMMARY: (\d+) hazard", output)]
    ours = next(
        (line for line in output.splitlines() if line.startswith(sanitizer_workload.OURS)), None
    )
    if not errors and "not supported" in output.lower():
        return not_there("compute-sanitizer does not support this machine")
    if not errors or ours is None:
        last = [line for line in output.splitlines() if line.strip()][-1:] or ["no output"]
        return failed(f"ended with {code}: {last[0]}")
    kernels = set(ours.removeprefix(sanitizer_workload.OURS).split())
    guilty = set(re.findall(r"\bat (?:void )?([\w:]+)", output))
    found = sum(errors)
    if found and (guilty & kernels or not guilty):
        return failed(f"{found} errors in {', '.join(sorted(guilty & kernels)) or 'some kernel'}")
    others = f"; {found} reports, all in kernels of others" if found else ""
    return passed(f"{len(kernels)} kernels{others}")


def parts() -> dict[str, float]:
    return dict.fromkeys(TOOLS, 1)
