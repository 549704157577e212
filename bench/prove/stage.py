"""Runs a stage of `make prove` as a process, with a time limit, whatever happens in it.

A stage is a module with `PARTS`, which are names, perhaps with weights, and `work(part, seconds)`,
which returns its outcome: its `state`, one of `STATES`, a `message` of one line, and optionally
`figures` or `rows` for the result file and `lines` to print.
A stage catches no errors: if one ends the process, that part has failed, and the stage starts again
without it.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

SPAWN = multiprocessing.get_context("spawn")
SOFT_LIMIT = 0.85  # of its time, after which a stage starts no further part; at 1 it is killed
STATES = ("passed", "not available", "no time", "failed")  # from best to worst
Outcome = dict


def _outcome(state: str, message: str, **more) -> Outcome:
    return {"state": state, "message": message, **more}


passed, failed = partial(_outcome, "passed"), partial(_outcome, "failed")
not_available = partial(_outcome, "not available")
no_time = partial(_outcome, "no time", message="no time was left")


def worst_state(outcomes: Iterable[Outcome]) -> str:
    """The worst state, or "failed" if there are no outcomes."""
    return max((outcome["state"] for outcome in outcomes), key=STATES.index, default="failed")


def run_stage(module: str, seconds: float, log: Path, only: Iterable[str] = ()) -> dict:
    """Run a stage until each part has an outcome or the time is over; its outcomes by part."""
    deadline, name = time.monotonic() + seconds, module.rpartition(".")[2]
    outcomes: dict[str, Outcome | None] = {}  # None: the part has not ended
    while (left := deadline - time.monotonic()) > 0:
        done = [part for part, outcome in outcomes.items() if outcome]
        with tempfile.NamedTemporaryFile("r") as file:
            arguments = (module, SOFT_LIMIT * left, list(only), done, file.name)
            with started(log, work_through, *arguments) as process:
                process.join(left)
                code = process.exitcode
            for line in file.read().rpartition("\n")[0].splitlines():  # only whole lines
                outcomes |= json.loads(line)
        if code == 0:
            return outcomes
        if code is None:  # the time is over
            break
        last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1].strip()
        current = next((part for part, outcome in outcomes.items() if not outcome), name)
        outcomes[current] = failed(f"ended with {code}: {last[:300]}")
        if None not in outcomes.values():
            break
    return {part: outcome or no_time() for part, outcome in (outcomes or {name: None}).items()}


def work_through(module: str, seconds: float, only, skip, file: str) -> None:
    """Work on each part of a stage, by default all, within its share of the remaining time.

    Writes JSON lines to `file`: the parts in order, each with None, then the outcome of each part.
    """
    deadline = time.monotonic() + seconds
    stage = importlib.import_module(module)
    weights = stage.PARTS if isinstance(stage.PARTS, dict) else dict.fromkeys(stage.PARTS, 1)
    chosen = [part for part in weights if part not in skip and (part in only or not only)]
    with open(file, "w", buffering=1) as lines:
        print(json.dumps(dict.fromkeys(chosen)), file=lines)
        for index, part in enumerate(chosen):
            left = deadline - time.monotonic()
            total = sum(weights[later] for later in chosen[index:])
            outcome = stage.work(part, left * weights[part] / total) if left > 0 else no_time()
            print(json.dumps({part: outcome}), file=lines)
            print(f"{part}: {outcome['state']}, {outcome['message']}", flush=True)


@contextlib.contextmanager
def beside(calls: Iterable[tuple], seconds: float, log: Path) -> Iterator[None]:
    """Make calls, (function, *arguments), during the block; wait at most `seconds` for both."""
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(started(log, *call)) for call in calls]
        yield
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))


@contextlib.contextmanager
def started(log: Path, function: Callable, *arguments) -> Iterator[BaseProcess]:
    """Call `function` in a process; on exit, kill it with every process that it has started."""
    process = SPAWN.Process(target=_logged, args=(log, function, *arguments))
    process.start()
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()  # it may not have its own group yet
        process.join()


def _logged(log: Path, function: Callable, *arguments) -> None:
    os.setsid()
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    print(f"\n{function.__name__}{arguments}", flush=True)
    function(*arguments)
