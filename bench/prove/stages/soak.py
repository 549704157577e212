"""A run on the card that is killed, stopped and resumed at random, and compared with itself.

`bench.recipes.soak` does it; of what it does besides, nothing needs a card.
"""

import subprocess
import sys

from bench.prove.stages import Outcome, failed, no_time, passed
from bench.results_file import REPOSITORY

WAYS = {
    "one CUDA graph": ["--kernels=triton", "--step=graph"],
    "eager": ["--kernels=triton", "--step=eager"],
    "bf16, the accumulated passes of PyTorch's operations": [
        *("--kernels=torch", "--step=eager", "--dtype=bfloat16"),
        "--gradient-accumulation-steps=2",
    ],
}
SHARE = 0.6  # of the time, in which it interrupts; then the last run goes to its end


def work(part: str, seconds: float) -> Outcome:
    minutes = ["--run-only", f"--minutes={SHARE * seconds / 60}"]
    command = [
        sys.executable,
        "-m",
        "bench.recipes.soak",
        *minutes,
        "--",
        "--device=cuda",
        *WAYS[part],
    ]
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return no_time()
    lines = done.stdout.splitlines()
    if done.returncode:
        return failed((lines or done.stderr.splitlines() or ["nothing was said"])[-1])
    return passed("nothing was lost", lines=[f"{part}: {line}" for line in lines])


def parts() -> dict[str, float]:
    return dict.fromkeys(WAYS, 1)
