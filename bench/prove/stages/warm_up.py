"""The steps that torch.compile computes, compiled ahead: all at once, into the inductor's cache."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.prove.stages import Outcome, not_there, passed
from bench.prove.stages.step import COMPILED
from bench.results_file import REPOSITORY

STEP = [sys.executable, "-m", "bench.prove.stages", "bench.prove.stages.step", "--seconds=0.1"]
THREADS = 3  # of the inductor, for each step


def work(part: str, seconds: float) -> Outcome:
    deadline = time.monotonic() + seconds
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": str(THREADS)}
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            subprocess.Popen(
                [*STEP, f"--only={name}", f"--report={Path(folder, str(index))}"],
                cwd=REPOSITORY,
                env=environment,
            )
            for index, name in enumerate(COMPILED)
        ]
        codes = []
        for job in jobs:
            try:
                codes.append(job.wait(timeout=max(0.0, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                job.kill()
                job.wait()
    if not codes:
        return not_there("none was compiled in time")
    return passed(f"{codes.count(0)} of {len(COMPILED)} steps are compiled")


def parts() -> dict[str, float]:
    return {"torch.compile": 1}
