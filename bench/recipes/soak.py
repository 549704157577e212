"""Interrupt a run at random moments for as long as asked, and check that nothing is ever lost.

    python -m bench.recipes.soak --minutes 10 --json bench/results/reliability-DATE.json

1. A run trains for a sixth of the time and is stopped; its memory and open files must not grow.
2. The same run is started again, and killed (kill -9) or stopped by a signal and resumed at
   random moments until it has taken as many steps. After each interruption every checkpoint must
   be whole and no saved step may be missing; meanwhile its model is loaded by another process. At
   the end weights, optimizer and random state must equal those of the first run, bit for bit, and
   no file may be left that no checkpoint needs.

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
    *("--lr-decay-iters=100000", "--device=cpu"),
]
FORK = multiprocessing.get_context("fork")
ENDLESS = 10**9  # steps
LONGEST = 3  # times until an interruption, at most, relative to the time to the first checkpoint
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# exit codes of an interrupted run; all but the first two if it is stopped before training starts
INTERRUPTED = (0, *(-number for number in SIGNALS), 130)


class Lost(Exception):
    """A sentence that says what was lost."""


def main(arguments: list[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of interruptions")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as name:
            rows = soak(Path(name), 60 * asked.minutes, random.Random(asked.seed))
    except (Lost, UserError) as lost:
        print(f"LOST: {lost}")
        return 1
    for row in rows:
        print("{event}: {count}, lost {lost}".format(**row))
    common.write("reliability", rows, asked.json)
    return 0


def soak(folder: Path, seconds: float, draw: random.Random) -> list[dict]:
    """Run it without and with interruptions; the rows of the table. draw: the random moments."""
    whole, parts, count = folder / "whole", folder / "parts", Counter()
    end = time.monotonic() + seconds
    first_save, (memory, files), (last, last_files) = uninterrupted(whole, seconds / 6)
    steps = checkpoint.load(whole, "last")[0]["step"]
    while not count["equal"] or time.monotonic() < end:
        interrupted(parts, steps, LONGEST * first_save, end, draw, count)
        compare(whole, parts)
        count["equal"] += 1
    events = [
        ("training steps of the uninterrupted run", f"{steps:,}", 0),
        ("its memory halfway and at the end", f"{memory:,}, {last:,} KiB", ""),
        ("its open files halfway and at the end", f"{files}, {last_files}", ""),
        ("kill -9 at a random moment", f"{count['kills']:,}", 0),
        ("of these, while a file was being written", f"{count['in a file']:,}", 0),
        ("SIGTERM, SIGINT, SIGHUP or SIGUSR1 at a random moment", f"{count['signals']:,}", 0),
        ("checkpoints loaded by another process during training", f"{count['loads']:,}", 0),
        ("interrupted runs bitwise equal to the uninterrupted run", f"{count['equal']:,}", 0),
    ]
    return [dict(zip(("event", "count", "lost"), event, strict=True)) for event in events]


def start(folder: Path, *options) -> BaseProcess:
    """Fork a process that runs train.py; its output goes to a file beside the folder."""

    def run_train() -> None:
        with open(folder.with_suffix(".txt"), "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            sys.exit(train.main([*options, f"--out-dir={folder}"]))
        except KeyboardInterrupt:
            sys.exit(130)

    process = FORK.Process(target=run_train)
    process.start()
    return process


def resources(process: BaseProcess) -> tuple[int, int]:
    """KiB of memory, and the number of open files."""
    folder = Path("/proc", str(process.pid))
    memory = re.search(r"VmRSS:\s+(\d+)", (folder / "status").read_text())[1]
    return int(memory), len(os.listdir(folder / "fd"))


def output(folder: Path) -> str:
    return folder.with_suffix(".txt").read_text()[-500:]


def uninterrupted(folder: Path, seconds: float) -> tuple:
    """Train for `seconds`; the time to a checkpoint, and the resources halfway and at the end."""
    begin, process = time.monotonic(), start(folder, *OPTIONS, f"--max-iters={ENDLESS}")
    while process.is_alive() and not (folder / "last.json").exists():
        time.sleep(0.02)
    first_save, used = time.monotonic() - begin, []
    for _ in range(2):  # everything has been loaded by then
        process.join(seconds / 2)
        if process.exitcode is not None:
            raise Lost(f"the run ended with {process.exitcode}: {output(folder)}")
        used.append(resources(process))
    process.terminate()
    process.join()
    if process.exitcode:
        raise Lost(f"the run ended with {process.exitcode} when stopped: {output(folder)}")
    if used[1][0] > 1.05 * used[0][0] or used[1][1] > used[0][1] + 3:
        raise Lost(f"memory or open files grew from {used[0]} to {used[1]}")
    return first_save, *used


def interrupted(folder: Path, steps: int, longest: float, end: float, draw, count) -> None:
    """Train to `steps` with interruptions until `end`, which are counted."""
    reached, code = -1, None  # nothing is saved
    while (code, reached) != (0, steps):
        if reached < 0:
            shutil.rmtree(folder, ignore_errors=True)
        given = OPTIONS if reached < 0 else ["--resume"]
        process = start(folder, *given, f"--max-iters={steps}")
        sent = time.monotonic() < end and interrupt(process, folder, longest, draw, count)
        process.join()
        reached, code = check(folder, reached), process.exitcode
        if code not in INTERRUPTED if sent else (code, reached) != (0, steps):
            raise Lost(f"train.py ended with {code} at step {reached}: {output(folder)}")


def interrupt(process: BaseProcess, folder: Path, longest: float, draw, count) -> bool:
    """Load the model during training, then send a signal. Returns whether one was sent."""
    moment = time.monotonic() + draw.uniform(0, longest)
    while time.monotonic() < moment:
        process.join(0.01)
        if process.exitcode is not None:
            return False
        if draw.random() < 0.02 and (folder / "best.json").exists():
            load_model(folder, "best", load("torch"), torch.device("cpu"))
            count["loads"] += 1
    sent = draw.choices(SIGNALS, (4, 1, 1, 1, 1))[0]
    os.kill(process.pid, sent)
    process.join()
    count["kills" if sent == signal.SIGKILL else "signals"] += 1
    if sent == signal.SIGKILL and list(folder.glob("*.partial")):
        count["in a file"] += 1
    return True


def check(folder: Path, before: int) -> int:
    """Check that all checkpoints are whole; the step of the last one, at least `before`."""
    if not (folder / "last.json").exists():
        if before >= 0:
            raise Lost("the last checkpoint is missing")
        return before
    for path in folder.glob("step-*.json"):
        checkpoint.load(folder, path.stem, ALL_KINDS)
    checkpoint.load(folder, "best")
    reached = checkpoint.load(folder, "last", ALL_KINDS)[0]["step"]
    if reached < before:
        raise Lost(f"the last checkpoint is of step {reached}, after one of step {before}")
    return reached


def compare(whole: Path, parts: Path) -> None:
    """Both must have the same last checkpoint and losses, and `parts` no needless file."""
    records = [checkpoint.load(folder, "last")[0] for folder in (whole, parts)]
    for kind in ALL_KINDS:
        digests = {record["files"][kind]["sha256"] for record in records}
        if len(digests) > 1:
            raise Lost(f"the {kind} of step {records[0]['step']} differ after interruptions")
    needed = {"lock", "metrics.jsonl", "loss.png", *(path.name for path in parts.glob("*.json"))}
    for path in set(parts.glob("*.json")) - {parts / "config.json", parts / "summary.json"}:
        files = checkpoint.load(parts, path.stem)[0]["files"]
        needed |= {file["name"] for file in files.values()}
    if left := {path.name for path in parts.iterdir()} - needed:
        raise Lost(f"files that nothing needs are left: {', '.join(left)}")
    lines = [read_metrics(folder) for folder in (whole, parts)]
    losses = [[(line["step"], line["loss"]) for line in of if "loss" in line] for of in lines]
    if losses[0] != losses[1]:
        raise Lost("the losses in metrics.jsonl differ after interruptions")


if __name__ == "__main__":
    sys.exit(main())
