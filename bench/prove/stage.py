"""The protocol of a stage of `make prove`, each of which is a process of its own.

    python -m bench.prove.stage bench.prove.stages.repeat --seconds 60 --report FILE

A stage is a module with `parts()`, their weights, and `work(part, seconds)`, which returns
its outcome: its `state`, one of `STATES`, a `message` of one line, and optionally
`figures` or `rows` for the result file and `lines` to print. The report is a JSON file
{part: outcome}; the outcome of the current part is null. A stage catches no errors: if one ends the
process, the report names the part, and `bench.prove.run` starts the stage again without it.
"""

import argparse
import importlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from gpt.files import write_whole

STATES = ("passed", "not available", "no time", "failed")  # from best to worst
Outcome = dict


def passed(message: str, **more) -> Outcome:
    return {"state": "passed", "message": message, **more}


def failed(message: str, **more) -> Outcome:
    return {"state": "failed", "message": message, **more}


def not_available(message: str) -> Outcome:
    return {"state": "not available", "message": message}


def no_time(message: str = "no time was left") -> Outcome:
    return {"state": "no time", "message": message}


def worst_state(outcomes: Iterable[Outcome]) -> str:
    """The worst state, or "failed" if there are no outcomes."""
    return max((outcome["state"] for outcome in outcomes), key=STATES.index, default="failed")


def work_through(
    parts: dict[str, float],
    work: Callable[[str, float], Outcome],
    seconds: float,
    report: Path,
    clock=time.monotonic,
) -> None:
    """Work on each part within its share of the remaining time, and report it at once."""
    deadline = clock() + seconds
    outcomes: dict[str, Outcome | None] = {}

    def record(part: str, outcome: Outcome | None) -> None:
        outcomes[part] = outcome
        write_whole(report, json.dumps(outcomes).encode())

    waiting = dict(parts)
    for part, weight in parts.items():
        left, share = deadline - clock(), weight / sum(waiting.values())
        del waiting[part]
        record(part, None)
        outcome = work(part, left * share) if left > 0 else no_time()
        record(part, outcome)
        print(f"{part}: {outcome['state']}, {outcome['message']}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="run one stage of python -m bench.prove")
    add = parser.add_argument
    add("module", help="the stage, for example bench.prove.stages.repeat")
    add("--seconds", type=float, required=True, help="start no part after this time")
    add("--report", type=Path, required=True, help="the JSON file of outcomes")
    # one option per part, because their names contain commas
    add("--skip", action="append", default=[], help="a part to leave out")
    add("--only", action="append", default=[], help="a part to run; by default all run")
    options = parser.parse_args(arguments)
    stage = importlib.import_module(options.module)
    parts = {
        part: weight
        for part, weight in stage.parts().items()
        if part not in options.skip and (not options.only or part in options.only)
    }
    work_through(parts, stage.work, options.seconds, options.report)


if __name__ == "__main__":
    main()
