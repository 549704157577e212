"""Time to a loss: training runs until the whole validation split's loss is nanoGPT's best, 1.4697.

Seconds are those of training; set-up, compilation and evaluations are not counted, and told
apart. It needs the lecture's text: in data/, or where the variable SHAKESPEARE says.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.prove.stages import Outcome, failed, no_time, passed
from bench.results_file import REPOSITORY

MARK = 1.4697  # nanoGPT's README, shakespeare_char on one A100
EVAL_INTERVAL = 25

# part -> the options of train.py
RUNS = {
    **{f"speedrun, seed {seed}": ["--preset=speedrun", f"--seed={seed}"] for seed in range(1, 6)},
    "nanoGPT's recipe, triton": ["--preset=shakespeare-char", "--kernels=triton"],
    "nanoGPT's recipe, torch compiled": [
        "--preset=shakespeare-char",
        "--kernels=torch",
        "--compile",
    ],
    "nanoGPT's recipe, reference": ["--preset=shakespeare-char", "--kernels=reference"],
}


def work(part: str, seconds: float) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", *RUNS[part], f"--out-dir={folder}/run", "--sample=0"]
        command += [f"--data={text()}", f"--eval-interval={EVAL_INTERVAL}"]
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=REPOSITORY)
        try:
            found = watch(Path(folder, "run", "metrics.jsonl"), process, began + seconds)
        finally:
            process.kill()
            code = process.wait()
        wall = time.monotonic() - began
    if found is None and time.monotonic() >= began + seconds:
        return no_time()
    if found is None:
        return failed(f"train.py ended with {code} before it reached {MARK}")
    says = f"{MARK} after {found['seconds']:.2f} s of training, step {found['step']}"
    return passed(says, figures={**found, "wall_seconds": wall}, lines=[f"{part}: {says}"])


def text() -> str:
    """The file of tiny shakespeare, or the name by which train.py finds it."""
    return os.environ.get("SHAKESPEARE", "shakespeare")


def watch(metrics: Path, process, deadline: float) -> dict | None:
    """The first evaluation at or below the mark; None if the run or the time ends before."""
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        for line in evaluations(metrics):
            if line["val_loss"] <= MARK:
                return line
        if ended:
            return None
        time.sleep(0.2)
    return None


def evaluations(metrics: Path) -> list[dict]:
    """The evaluations so far; a line that is being written is left for the next time."""
    written = metrics.read_text() if metrics.exists() else ""
    lines = written[: written.rfind("\n") + 1].splitlines()
    return [line for line in map(json.loads, lines) if "val_loss" in line]


def parts() -> dict[str, float]:
    return {part: 1 if part.startswith("speedrun") else 4 for part in RUNS}
