"""Interrupt a run at random moments for as long as asked, and check that nothing is ever lost.

    python -m bench.recipes.soak --minutes 10 --json bench/results/reliability-DATE.json

1. A run trains for a sixth of the time and is stopped; its memory and open files must not grow.
2. The same run is started again, and killed (kill -9) or stopped (SIGTERM, SIGINT) and resumed at
   random moments until it has taken as many steps. After each interruption every checkpoint must
   be whole and no saved step may be missing; meanwhile its model is loaded by another process. At
   the end weights, optimizer and random state must equal those of the first run, bit for bit.

It ends at the first loss with exit code 1. Runs are forks of this process, which has imported
everything, so that several can be interrupted in a second.
"""

import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

import train
from bench.recipes import common
from gpt import UserError
from gpt.generation.load import load_model
from gpt.runs import checkpoint
from gpt.runs.metrics import read_metrics
from gpt.runs.run_state import ALL_KINDS
from kernels import load

# small steps and frequent saves, so that about every second interruption hits a save
OPTIONS = [
    *("--preset=quickstart", "--data=python-docs", "--dtype=float32", "--dropout=0.1"),
    *("--n-layer=2", "--n-head=2", "--n-embd=32", "--block-size=32", "--batch-size=8"),
    *("--eval-interval=10", "--eval-iters=1", "--log-interval=5", "--keep=2", "--sample=0"),
    "--lr-decay-iters=100000",
]
FORK = multiprocessing.get_context("fork")
ENDLESS = 10**9  # steps
LONGEST = 3  # times until an interruption, at most, relative to the time to the first checkpoint
SIGNALS = (*[signal.SIGKILL] * 3, signal.SIGTERM, signal.SIGINT)
UNHANDLED = (-signal.SIGTERM, -signal.SIGINT, 130)  # exit codes if stopped before training starts


class Lost(Exception):
    """A sentence that says what was lost."""


def main(arguments: list[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of interruptions")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("options", nargs="*", help="more options of train.py, after --")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options = [*OPTIONS, "--device=cpu", *asked.options]
    end = time.monotonic() + 60 * asked.minutes
    try:
        with tempfile.TemporaryDirectory() as name:
            whole, parts = Path(name, "whole"), Path(name, "parts")
            rows, first_save = uninterrupted(whole, options, 10 * asked.minutes)
            steps = checkpoint.load(whole, "last")[0]["step"]
            interrupted = Interrupted(parts, options, steps, LONGEST * first_save, asked.seed)
            while not interrupted.count["equal"] or time.monotonic() < end:
                interrupted.run_to_end(end)
                compare(whole, parts)
                interrupted.count["equal"] += 1
        rows += interrupted.rows()
    except (Lost, UserError) as lost:
        print(f"LOST: {lost}")
        return 1
    for one in rows:
        print("{}: {}, lost {}".format(*one.values()))
    if asked.json:
        common.write("reliability", rows, asked.json)
    return 0


def row(event: str, count: int | str, lost: int | str = 0) -> dict:
    count = f"{count:,}" if isinstance(count, int) else count
    return {"event": event, "count": count, "lost": lost}


# --- processes ------------------------------------------------------------------------------------


def start(folder: Path, *options) -> BaseProcess:
    """Fork a process that runs train.py."""
    process = FORK.Process(target=run_train, args=(folder, *options))
    process.start()
    return process


def run_train(folder: Path, *options) -> None:
    with open(folder.with_suffix(".txt"), "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        sys.exit(train.main([*options, f"--out-dir={folder}"]))
    except KeyboardInterrupt:
        sys.exit(130)


def exit_code(process: BaseProcess) -> int:
    """Wait for the end of a process; the number of a signal is negative."""
    process.join()
    return process.exitcode


def resources(process: BaseProcess) -> tuple[int, int]:
    """KiB of memory, and the number of open files."""
    folder = Path("/proc", str(process.pid))
    memory = re.search(r"VmRSS:\s+(\d+)", (folder / "status").read_text())[1]
    return int(memory), len(os.listdir(folder / "fd"))


def output(folder: Path) -> str:
    return folder.with_suffix(".txt").read_text()[-500:]


# --- one run, and the same run interrupted --------------------------------------------------------


def uninterrupted(folder: Path, options: list[str], seconds: float) -> tuple[list[dict], float]:
    """Train for `seconds`; rows of memory and open files, and seconds to the first checkpoint."""
    process, used, first_save = start(folder, *options, f"--max-iters={ENDLESS}"), [], None
    now = time.monotonic()
    while time.monotonic() < now + seconds:
        time.sleep(seconds / 200)
        if first_save is None and (folder / "last.json").exists():
            first_save = time.monotonic() - now
        if process.exitcode is not None:
            raise Lost(f"the run ended with {process.exitcode}: {output(folder)}")
        used.append(resources(process))
    process.terminate()
    if code := exit_code(process):
        raise Lost(f"the run ended with {code} when stopped: {output(folder)}")
    used = used[len(used) // 2 :]  # everything has been loaded by then
    (memory, files), (last, last_files) = used[0], used[-1]
    if last > 1.05 * memory or max(files for _, files in used) > files + 3:
        raise Lost(f"memory or open files grew from {used[0]} to {used[-1]}")
    if first_save is None:
        raise Lost(f"nothing was saved in {seconds:.0f} s; give more --minutes")
    steps = checkpoint.load(folder, "last")[0]["step"]
    rows = [
        row("training steps of the uninterrupted run", steps),
        row("its memory halfway and at the end", f"{memory:,}, {last:,} KiB", ""),
        row("its open files halfway and at the end", f"{files}, {last_files}", ""),
    ]
    return rows, first_save


class Interrupted:
    """Runs train.py in `folder` with random interruptions until it has taken `steps`."""

    def __init__(self, folder: Path, options: list[str], steps: int, longest: float, seed: int):
        self.folder, self.options, self.steps, self.longest = folder, options, steps, longest
        self.random = random.Random(seed)
        self.count = Counter()

    def run_to_end(self, end: float) -> None:
        """One run from its first to its last step; it is not interrupted after `end`."""
        reached = -1  # nothing is saved
        while True:
            options = ["--resume"] if reached >= 0 else self.options
            if reached < 0:
                shutil.rmtree(self.folder, ignore_errors=True)
            process = start(self.folder, *options, f"--max-iters={self.steps}")
            if time.monotonic() > end:
                code, was_interrupted = exit_code(process), False
            else:
                code, was_interrupted = self.interrupt(process)
            reached = self.check(reached)
            if code == 0 and reached == self.steps:
                return
            if code not in (0, -signal.SIGKILL, *UNHANDLED) or (code == 0 and not was_interrupted):
                raise Lost(f"train.py ended with {code} at step {reached}: {output(self.folder)}")

    def interrupt(self, process: BaseProcess) -> tuple[int, bool]:
        """Load the model during training, then send a signal. Returns (exit code, was it sent)."""
        moment = time.monotonic() + self.random.uniform(0, self.longest)
        while time.monotonic() < moment:
            if process.exitcode is not None:
                return process.exitcode, False
            time.sleep(0.01)
            if self.random.random() < 0.02 and (self.folder / "best.json").exists():
                load_model(self.folder, "best", load("torch"), torch.device("cpu"))
                self.count["loads"] += 1
        sent = self.random.choice(SIGNALS)
        os.kill(process.pid, sent)
        code = exit_code(process)
        self.count["kills" if sent == signal.SIGKILL else "signals"] += 1
        if sent == signal.SIGKILL and list(self.folder.glob("*.partial")):
            self.count["in a file"] += 1
        return code, True

    def check(self, before: int) -> int:
        """Check that all checkpoints are whole; the step of the last one, at least `before`."""
        if not (self.folder / "last.json").exists():
            if before >= 0:
                raise Lost("the last checkpoint is missing")
            return before
        for path in self.folder.glob("step-*.json"):
            checkpoint.load(self.folder, path.stem, ALL_KINDS)
        checkpoint.load(self.folder, "best")
        reached = checkpoint.load(self.folder, "last", ALL_KINDS)[0]["step"]
        if reached < before:
            raise Lost(f"the last checkpoint is of step {reached}, after one of step {before}")
        return reached

    def rows(self) -> list[dict]:
        return [
            row("kill -9 at a random moment", self.count["kills"]),
            row("of these, while a file was being written", self.count["in a file"]),
            row("SIGTERM or SIGINT at a random moment", self.count["signals"]),
            row("checkpoints loaded by another process during training", self.count["loads"]),
            row("interrupted runs bitwise equal to the uninterrupted run", self.count["equal"]),
        ]


def compare(whole: Path, parts: Path) -> None:
    """Both runs must have the same last checkpoint and the same losses."""
    records = [checkpoint.load(folder, "last")[0] for folder in (whole, parts)]
    for kind in ALL_KINDS:
        digests = {record["files"][kind]["sha256"] for record in records}
        if len(digests) > 1:
            raise Lost(f"the {kind} of step {records[0]['step']} differ after interruptions")
    lines = [read_metrics(folder) for folder in (whole, parts)]
    losses = [[(line["step"], line["loss"]) for line in of if "loss" in line] for of in lines]
    if losses[0] != losses[1]:
        raise Lost("the losses in metrics.jsonl differ after interruptions")


if __name__ == "__main__":
    sys.exit(main())
