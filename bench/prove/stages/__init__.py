"""The stages of `make prove`, each a program of its own: whatever ends one, the next one runs.

    python -m bench.prove.stages bench.prove.stages.repeat --seconds 60 --report FILE --without adamw

A stage is a module with `parts()`, each with its share of the time, and `work(part, seconds)`. It
works through its parts, mostly operations, and after each writes its report: a JSON file
{"at": the part that is being worked on, "parts": {name: outcome}}. An outcome has a `state`, one
of `STATES`, a sentence under `says`, and perhaps more `lines` for people. A stage catches nothing:
an error that loses the card takes the process with it, the report says where, and `bench.prove`
starts it again `--without` the parts that have their outcome.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.results_file import write_whole

# a pytest with no other plugins than it is told of: what is installed on a card is not ours
ALONE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

STATES = ("passed", "not there", "no time", "failed")  # the later, the worse
Outcome = dict


def passed(says: str, **more) -> Outcome:
    return {"state": "passed", "says": says, **more}


def failed(says: str, **more) -> Outcome:
    return {"state": "failed", "says": says, **more}


def not_there(says: str) -> Outcome:
    return {"state": "not there", "says": says}


def no_time() -> Outcome:
    return {"state": "no time", "says": "no time was left"}


def worst(outcomes: Iterable[Outcome]) -> str:
    return max((outcome["state"] for outcome in outcomes), key=STATES.index, default="failed")


class Report:
    """What a stage has done so far, on disk after every step."""

    def __init__(self, path: Path):
        self.path = path
        self.content = {"at": None, "parts": {}}

    def begin(self, part: str) -> None:
        self.content["at"] = part
        self._write()

    def end(self, part: str, outcome: Outcome) -> None:
        self.content["at"] = None
        self.content["parts"][part] = outcome
        print(f"{part}: {outcome['state']}, {outcome['says']}", flush=True)
        self._write()

    def _write(self) -> None:
        write_whole(self.path, json.dumps(self.content))


def work_through(
    parts: dict[str, float],
    work: Callable[[str, float], Outcome],
    arguments: list[str] | None = None,
    clock=time.monotonic,
) -> None:
    """Call `work(part, seconds)` for every part, within its share of the time that is left.

    `parts` says what share each is to have, against the shares of those that come after it.
    """
    options = _options(arguments)
    deadline = clock() + options.seconds
    report = Report(options.report)
    todo = [one for one in parts if one not in options.without]
    todo = [one for one in todo if not options.only or one in options.only]
    for index, part in enumerate(todo):
        left = deadline - clock()
        if left <= 0:
            report.end(part, no_time())
            continue
        report.begin(part)
        report.end(part, work(part, left * parts[part] / sum(parts[one] for one in todo[index:])))


def _options(arguments: list[str] | None):
    parser = argparse.ArgumentParser(description="a stage of python -m bench.prove")
    parser.add_argument("--seconds", type=float, required=True, help="begin no part after this")
    parser.add_argument("--report", type=Path, required=True)
    # given once for each part, because names of parts have commas in them
    parser.add_argument("--without", action="append", default=[], help="a part to leave out")
    parser.add_argument("--only", action="append", default=[], help="a part; no other is done")
    return parser.parse_args(arguments)
