"""Is a run ever lost? One is interrupted at random for as long as asked, and compared with itself.

    python -m bench.recipes.soak --minutes 10 --json bench/results/reliability-DATE.json

1. A run goes on for a sixth of the time and is stopped; its memory and open files are watched.
2. The same run is begun again and again, each time killed (kill -9) or stopped (SIGTERM, SIGINT) at
   a random moment and resumed, until it has come as far. After each blow every checkpoint must be
   whole and no step that was saved may be gone; while it trains, others read its model. At its end
   weights, optimizer and random state must be those of the first run, bit for bit.
3. A save is killed at every call into the file system (`tests.gpt.runs.saving`).
4. Strangers' checkpoints, token files and metrics, a thousand of each kind (`tests/test_fuzz.py`).

It ends at the first thing that is lost, with exit code 1. Processes are forks of this one, which
has imported everything: several die in a second.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from datetime import date
from pathlib import Path

import torch

import train
from bench.recipes.quickstart import machine
from bench.results_file import REPOSITORY, SCHEMA, commit
from gpt import UserError
from gpt.runs import checkpoint
from gpt.runs.metrics import read_metrics
from gpt.runs.run_state import WHOLE, load_model
from kernels import load

# small steps and frequent saves, so that every second blow or so falls into one
OPTIONS = [
    *("--preset=quickstart", "--data=python-docs", "--dtype=float32", "--dropout=0.1"),
    *("--n-layer=2", "--n-head=2", "--n-embd=32", "--block-size=32", "--batch-size=8"),
    *("--eval-interval=10", "--eval-iters=1", "--log-interval=5", "--keep=2", "--sample=0"),
    "--lr-decay-iters=100000",
]
FOR_EVER = 10**9  # steps
LONGEST = 3  # times what a run needs to begin and to save, the time to the next blow is at most
BLOWS = (*[signal.SIGKILL] * 3, signal.SIGTERM, signal.SIGINT)
UNHEARD = (-signal.SIGTERM, -signal.SIGINT, 130)  # how it ends when it is stopped before it trains


class Lost(Exception):
    """What was lost, in a sentence."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of interrupting")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--run-only", action="store_true", help="leave parts 3 and 4 out")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("options", nargs="*", help="more options of train.py, after --")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options = [*OPTIONS, "--device=cpu", *asked.options]
    end = time.monotonic() + 60 * asked.minutes
    try:
        with tempfile.TemporaryDirectory() as name:
            whole, parts = Path(name, "whole"), Path(name, "parts")
            rows, begin = uninterrupted(whole, options, 10 * asked.minutes)
            steps = checkpoint.load(whole, "last")[0]["step"]
            blows = Blows(parts, options, steps, LONGEST * begin, asked.seed)
            while not blows.counted["compared"] or time.monotonic() < end:
                blows.again(end)
                compare(whole, parts)
                blows.counted["compared"] += 1
        rows += blows.rows()
        if not asked.run_only:
            rows += [killed_saves(), *fuzzed()]
    except (Lost, UserError) as lost:
        print(f"LOST: {lost}")
        return 1
    for row in rows:
        print("{}: {}, lost {}".format(*row.values()))
    if asked.json:
        figures = {
            "schema": SCHEMA,
            "table": "reliability",
            "date": date.today().isoformat(),
            "commit": commit(),
            "machine": machine(),
            "rows": rows,
        }
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def row(what: str, figure: int | str, lost: int | str = 0) -> dict:
    figure = f"{figure:,}" if isinstance(figure, int) else figure
    return {"what": what, "figure": figure, "lost": lost}


# --- processes ------------------------------------------------------------------------------------


def start(folder: Path, *options) -> int:
    """The process of a train.py, its lines in a file beside the folder."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        lines = os.open(folder.with_suffix(".txt"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        os.dup2(lines, 1)
        os.dup2(lines, 2)
        code = train.main([*options, f"--out-dir={folder}"])
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    finally:
        if code == 1:
            traceback.print_exc()
        os._exit(code)


def has_ended(process: int) -> int | None:
    """Its exit code, a signal's number being negative; None if it is at work."""
    done, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def size(process: int) -> tuple[int, int]:
    """KiB of memory, and open files."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]), len(os.listdir(f"/proc/{process}/fd"))


# --- one run, and the same in pieces --------------------------------------------------------------


def uninterrupted(folder: Path, options: list[str], seconds: float) -> tuple[list[dict], float]:
    """Train for so long; figures of memory and open files, seconds to the first checkpoint."""
    process, sizes, begin = start(folder, *options, f"--max-iters={FOR_EVER}"), [], None
    now = time.monotonic()
    while time.monotonic() < now + seconds:
        time.sleep(seconds / 200)
        if begin is None and (folder / "last.json").exists():
            begin = time.monotonic() - now
        if (code := has_ended(process)) is not None:
            raise Lost(f"the run ended by itself with {code}: {said(folder)}")
        sizes.append(size(process))
    os.kill(process, signal.SIGTERM)
    if code := wait(process):
        raise Lost(f"the run was stopped and ended with {code}: {said(folder)}")
    sizes = sizes[len(sizes) // 2 :]  # what is loaded late is loaded by then
    (memory, files), (last, last_files) = sizes[0], sizes[-1]
    if last > 1.05 * memory or max(files for _, files in sizes) > files + 3:
        raise Lost(f"memory or open files grew: {sizes[0]} to {sizes[-1]}")
    if begin is None:
        raise Lost(f"nothing was saved in {seconds:.0f} s; give more --minutes")
    steps = checkpoint.load(folder, "last")[0]["step"]
    rows = [
        row("steps of a run that nobody interrupted", steps),
        row("its memory half-way and in the end", f"{memory:,}, {last:,} KiB", ""),
        row("its open files then", f"{files}, {last_files}", ""),
    ]
    return rows, begin


class Blows:
    """Interrupts the run in `folder` until it has taken `steps`."""

    def __init__(self, folder: Path, options: list[str], steps: int, longest: float, seed: int):
        self.folder, self.options, self.steps, self.longest = folder, options, steps, longest
        self.random = random.Random(seed)
        self.counted = Counter()

    def again(self, end: float) -> None:
        """One run from its beginning to its last step; after `end` nothing interrupts it."""
        reached = -1  # nothing is saved yet
        while True:
            options = ["--resume"] if reached >= 0 else self.options
            if reached < 0:
                shutil.rmtree(self.folder, ignore_errors=True)
            process = start(self.folder, *options, f"--max-iters={self.steps}")
            if time.monotonic() > end:
                code, blow = wait(process), None
            else:
                code, blow = self.strike(process)
            reached = self.check(reached)
            if code == 0 and reached == self.steps:
                return
            if code not in (0, -signal.SIGKILL, *UNHEARD) or (code == 0 and blow is None):
                raise Lost(f"train.py ended with {code} at step {reached}: {said(self.folder)}")

    def strike(self, process: int) -> tuple[int, signal.Signals | None]:
        """Wait, read the model that is in training, send a signal; exit code and signal."""
        moment = time.monotonic() + self.random.uniform(0, self.longest)
        while time.monotonic() < moment:
            if (code := has_ended(process)) is not None:
                return code, None
            time.sleep(0.01)
            if self.random.random() < 0.02 and (self.folder / "best.json").exists():
                load_model(self.folder, "best", load("torch"), torch.device("cpu"))
                self.counted["read"] += 1
        blow = self.random.choice(BLOWS)
        os.kill(process, blow)
        code = wait(process)
        kind = "kills" if blow == signal.SIGKILL else "signals"
        self.counted[kind] += 1
        if blow == signal.SIGKILL and list(self.folder.glob("*.partial")):
            self.counted["in a file"] += 1
        return code, blow

    def check(self, before: int) -> int:
        """The step of the last checkpoint; all there are must be whole, and none may be gone."""
        if not (self.folder / "last.json").exists():
            if before >= 0:
                raise Lost("the last checkpoint is gone")
            return before
        for path in self.folder.glob("step-*.json"):
            checkpoint.load(self.folder, path.stem, WHOLE)
        checkpoint.load(self.folder, "best")
        reached = checkpoint.load(self.folder, "last", WHOLE)[0]["step"]
        if reached < before:
            raise Lost(f"step {before} was saved, and after it step {reached}")
        return reached

    def rows(self) -> list[dict]:
        count = self.counted
        return [
            row("kill -9 at a random moment of a run", count["kills"]),
            row("of these, while a file was being written", count["in a file"]),
            row("SIGTERM or SIGINT at a random moment", count["signals"]),
            row("models read by others during training", count["read"]),
            row("interrupted runs equal to the other one in every bit", count["compared"]),
        ]


def compare(whole: Path, parts: Path) -> None:
    records = [checkpoint.load(folder, "last")[0] for folder in (whole, parts)]
    for kind in WHOLE:
        digests = [record["files"][kind]["sha256"] for record in records]
        if digests[0] != digests[1]:
            raise Lost(f"the {kind} of step {records[0]['step']} are not those of the whole run")
    lines = [read_metrics(folder) for folder in (whole, parts)]
    losses = [[(line["step"], line["loss"]) for line in of if "loss" in line] for of in lines]
    if losses[0] != losses[1]:
        raise Lost("the losses in metrics.jsonl are not those of the whole run")


def said(folder: Path) -> str:
    return folder.with_suffix(".txt").read_text()[-500:]


# --- what tests do, done more often ---------------------------------------------------------------


def killed_saves() -> dict:
    with tempfile.TemporaryDirectory() as folder:
        done = run("-m", "tests.gpt.runs.saving", folder)
    counted = json.loads(done.stdout)
    return row("kill -9 at every call of a save", counted["old"] + counted["new"])


def fuzzed() -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = ["--hypothesis-profile=thousand", f"--junitxml={report}"]
        run("-m", "pytest", "tests/test_fuzz.py", *options)
        counted = dict(re.findall(r'<property name="(\w+)" value="(\d+)"', report.read_text()))
    return [
        row("strangers' files and records", int(counted["cases"])),
        row("bytes in them", int(counted["bytes"])),
    ]


def run(*command) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True
    )
    if done.returncode:
        raise Lost(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done


if __name__ == "__main__":
    sys.exit(main())
