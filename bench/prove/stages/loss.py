"""Time to a loss: trains until the loss of the whole validation split is nanoGPT's best, 1.4697.

Seconds are those of training; set-up, compilation and evaluation are not included. The text of tiny
shakespeare is read from data/, or from the path in the environment variable SHAKESPEARE.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.prove.stage import Outcome, failed, no_time, passed
from bench.recipes.common import evaluations
from bench.results import REPOSITORY

TARGET_LOSS = 1.4697  # nanoGPT's README, shakespeare_char on one A100
EVAL_INTERVAL = 25

# part -> the options of train.py
RUNS = {
    **{f"speedrun, seed {seed}": ["--preset=speedrun", f"--seed={seed}"] for seed in range(1, 6)},
    "nanoGPT's recipe": ["--preset=shakespeare-char"],
}
PARTS = tuple(RUNS)


def work(part: str, seconds: float) -> Outcome:
    text = os.environ.get("SHAKESPEARE", "shakespeare")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", *RUNS[part], f"--out-dir={folder}/run", "--sample=0"]
        command += [f"--data={text}", f"--eval-interval={EVAL_INTERVAL}"]
        found, ended, start = None, False, time.monotonic()
        with subprocess.Popen(command, cwd=REPOSITORY) as process:
            while not found and not ended and time.monotonic() < start + seconds:
                time.sleep(0.2)
                ended = process.poll() is not None
                lines = evaluations(Path(folder, "run"))
                found = next((line for line in lines if line["val_loss"] <= TARGET_LOSS), None)
            process.kill()
    if found is None:
        message = f"train.py ended with {process.returncode} before it reached {TARGET_LOSS}"
        return failed(message) if ended else no_time()
    message = f"{TARGET_LOSS} after {found['seconds']:.2f} s of training, step {found['step']}"
    figures = {**found, "wall_seconds": time.monotonic() - start}
    return passed(message, figures=figures, lines=[f"{part}: {message}"])
