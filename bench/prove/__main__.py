"""One command that proves the kernels on a GPU: right, the same every time, and how fast.

    python -m bench.prove                          the plan, in nine minutes
    python -m bench.prove --stages parity,sanitize --minutes 8 --out results

The plan, in the order of its worth: ceilings, while all cores compile what the rest launches;
profile (captured steps against PyTorch's losses, the tests of CUDA graphs, where the time goes);
step (whole training steps, timed); bench (pytest-benchmark against peers); tune (other tiles);
parity (a quarter of the kernels' tests and those of the model, while torch.compile's steps are
compiled); compiled (these, timed); loss (training to nanoGPT's best). By name only: decode
(generating text), repeat (250 bit-equal runs), sanitize (compute-sanitizer), ledger (the loaded
kernels are the committed ones), soak (a run that is interrupted at random), ladder (the rungs of
docs/ladder); and all parts of step and parity.

Each stage runs as a process of its own and within its share of the time; one that fails is
reported and the next one runs. After each, what was found goes to one JSON file in --out, named
after GPU and date; a second run on the same day adds to it. Copied to bench/results/, it is what
`python -m bench.report` makes its tables of. Exit code: 0, 1 if a stage has failed, 2 without a
GPU.
"""

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from bench import results_file, workloads
from bench.prove.stages import Outcome, failed, no_time, parity, step, worst
from bench.report import targets


class Stage(NamedTuple):
    module: str
    share: float  # of the time, against the shares of the other stages that are asked for
    by_operation: bool = False  # its parts are operations, and --only chooses among them
    parts: tuple[str, ...] = ()  # which it has in the plan; by name it has all
    beside: str = ""  # a module that runs at the same time, and is not timed either


PLAN = {  # the shares are seconds of nine minutes
    "profile": Stage("bench.prove.stages.profile", 60),
    "step": Stage("bench.prove.stages.step", 60, parts=tuple(step.UNCOMPILED)),
    "bench": Stage("bench.prove.stages.speed", 130, by_operation=True),
    "tune": Stage("bench.prove.stages.tune", 80, by_operation=True),
    "parity": Stage(
        "bench.prove.stages.parity",
        100,
        parts=tuple(parity.FIRST),
        beside="bench.prove.stages.warm_up",
    ),
    "compiled": Stage("bench.prove.stages.step", 60, parts=tuple(step.COMPILED)),
    "loss": Stage("bench.prove.stages.loss", 30),
}
STAGES = PLAN | {
    "decode": Stage("bench.prove.stages.decode", 60),
    "repeat": Stage("bench.prove.stages.repeat", 60, by_operation=True),
    "sanitize": Stage("bench.prove.stages.sanitize", 120),
    "ledger": Stage("bench.prove.stages.ledger", 30, by_operation=True),
    "soak": Stage("bench.prove.stages.soak", 60),
    "ladder": Stage("bench.prove.stages.ladder", 30),
}
MOST_LINES = 12  # of a part; all of them are in the file
CARD, COMPILE = "bench.prove.stages.ceilings", "bench.prove.stages.compile"
CARD_SECONDS = 60  # at most, for the ceilings; they need some ten
COMPILE_SHARE = 20 / 540  # of the time, at most
SOFT = 0.85  # of its time, after which a stage begins no further part; all of it, and it is killed
LOG = "prove.log"

# module, seconds, log, more arguments -> the parts and their outcomes
Run = Callable[[str, float, Path, list[str]], dict[str, Outcome]]


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    if not torch.cuda.is_available():
        print(
            "make prove needs a CUDA GPU, and PyTorch sees none here; without one, "
            "`make test` runs the kernels in Triton's interpreter and `make ledger` compiles them"
        )
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    seconds, log = 60 * options.minutes, options.out / LOG
    date, commit = datetime.date.today().isoformat(), options.commit or results_file.commit()

    def keep(result: dict) -> Path:
        return save(options.out, stamp(result, date, commit))

    result = prove(options.stages, seconds, log, run_stage, keep, only=options.only)
    if "card" not in result:
        print(f"the GPU does not work: {result['stages']['card']['says']}")
        return 1
    print(f"\n{told(result)}\n\n{keep(result)}")
    return 1 if worst(result["stages"].values()) == "failed" else 0


def prove(
    stages: list[str],
    seconds: float,
    log: Path,
    run: Run,
    keep: Callable[[dict], object] = lambda result: None,
    only=(),
    clock=time.monotonic,
) -> dict:
    """Run the stages within `seconds`; {"card", "ceilings", "stages", "rows"}.

    `keep` is called with what there is after each stage.
    """
    deadline, in_plan = clock() + seconds, list(stages) == list(PLAN)
    ahead = COMPILE if in_plan else ""
    with beside(run, ahead, COMPILE_SHARE * seconds, log) as compiled:
        card = run(CARD, min(CARD_SECONDS, seconds), log, [])["card"]
    if card["state"] != "passed":
        return {"stages": {"card": card}, "rows": []}
    says = [card["says"], *(part["says"] for part in compiled.values())]
    print(f"{card['card']['name']}: {'; '.join(says)}", flush=True)
    result = {"card": card["card"], "ceilings": card["ceilings"], "stages": {}, "rows": []}
    for index, name in enumerate(stages):
        stage, shares = STAGES[name], [STAGES[later].share for later in stages[index:]]
        began = clock()
        allowance = (deadline - began) * shares[0] / sum(shares)
        print(f"{name}: at most {max(allowance, 0):.0f} s", flush=True)
        parts = {name: no_time()}
        if allowance > 0:
            choice = only if stage.by_operation else stage.parts if in_plan else ()
            arguments = [f"--only={part}" for part in choice]
            with beside(run, stage.beside if in_plan else "", allowance, log):
                parts = run(stage.module, allowance, log, arguments)
        for part in parts.values():
            result["rows"] += part.pop("rows", [])
        result["stages"][name] = {
            "state": worst(parts.values()),
            "says": sentence(parts),
            "seconds": round(clock() - began, 1),
            "parts": parts,
        }
        keep(result)
    return result


@contextlib.contextmanager
def beside(run: Run, module: str, seconds: float, log: Path):
    """Run `module` at the same time as the block, and wait for both; gives its outcomes."""
    outcomes: dict[str, Outcome] = {}
    if not module:
        yield outcomes
        return
    log = log and log.with_name(f"{module.rpartition('.')[2]}.log")
    thread = threading.Thread(target=lambda: outcomes.update(run(module, seconds, log, [])))
    thread.start()
    try:
        yield outcomes
    except BaseException:
        end_all()
        raise
    finally:
        thread.join()
        _interrupted.clear()


def run_stage(module: str, seconds: float, log: Path, arguments: list[str]) -> dict[str, Outcome]:
    """Run a stage until each of its parts has an outcome, or the time is over.

    When the stage's process dies in a part, that part has failed, and the stage begins again
    without it.
    """
    deadline = time.monotonic() + seconds
    parts: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        while (left := deadline - time.monotonic()) > 0 and not _interrupted.is_set():
            command = [sys.executable, "-m", "bench.prove.stages", module, "--report", str(report)]
            command += ["--seconds", f"{SOFT * left:.1f}", *arguments]
            command += [f"--without={part}" for part in parts]
            code = _run(command, left, log)
            content = json.loads(report.read_text()) if report.exists() else {}
            report.unlink(missing_ok=True)
            parts |= content.get("parts", {})
            if code == 0:
                return parts
            guilty = content.get("at")
            parts[guilty or module.rpartition(".")[2]] = (
                no_time() if code is None else failed(f"ended with {code}: {_last_line(log)}")
            )
            if guilty is None:  # it cannot even begin
                return parts
    return parts


def _run(command: list[str], seconds: float, log: Path) -> int | None:
    """The exit code of a process that writes to `log`; None if it had to be killed."""
    with log.open("a") as file:
        file.write(f"\n$ {' '.join(command)}\n")
        file.flush()
        process = subprocess.Popen(
            command,
            cwd=results_file.REPOSITORY,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it has started can be ended with it
        )
        _running.add(process.pid)
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process.pid)
            process.wait()
            _running.discard(process.pid)


_running: set[int] = set()  # process groups
_interrupted = threading.Event()


def end_all() -> None:
    _interrupted.set()
    for group in list(_running):
        _end(group)


def _end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def sentence(parts: dict[str, Outcome]) -> str:
    """One line for a stage: its worst part, or all of them together."""
    state = worst(parts.values())
    of_that = [name for name, part in parts.items() if part["state"] == state]
    if not of_that:
        return "nothing was done"
    says = f"{of_that[0]}: {parts[of_that[0]]['says']}"
    if len(parts) == 1:
        return parts[of_that[0]]["says"]
    return says if state == "failed" else f"{len(of_that)} of {len(parts)} {state}; {says}"


def stamp(result: dict, date: str, commit: str) -> dict:
    """The result as it is kept: every stage and row with the state that was measured, and when."""
    state = {"commit": commit, "date": date}
    stages = {name: stage | state for name, stage in result["stages"].items()}
    rows = [row | state for row in result["rows"]]
    return {"schema": results_file.SCHEMA, "date": date, **result, "stages": stages, "rows": rows}


def save(folder: Path, result: dict) -> Path:
    """Write the result to the folder, together with what is there of the same GPU and date."""
    path = folder / results_file.file_name(result["card"]["name"], result["date"])
    if path.exists():
        result = results_file.add(results_file.read(path), result)
    results_file.write(path, result)
    return path


def told(result: dict) -> str:
    """The end of the output: what each stage has to show, the targets, and the table of stages."""
    stages = result["stages"].items()
    lines = [
        f"{name}: {line}"
        for name, stage in stages
        for part in stage["parts"].values()
        for line in part.get("lines", ())[:MOST_LINES]
    ]
    verdicts = [targets.evaluate(target, result["rows"]) for target in targets.TARGETS]
    lines += [verdict.sentence for verdict in verdicts if verdict.value is not None]
    lines += [
        f"{name:<9}{stage['state']:<10}{stage['seconds']:>6.1f} s  {stage['says']}"
        for name, stage in stages
    ]
    if undone := not_done(result["stages"]):
        lines.append(f"not done: {undone}")
    return "\n".join(lines)


def not_done(stages: dict) -> str:
    """What a second run is for: stages that were left out, and parts that no time was left for."""
    late = [
        f"{name} ({', '.join(parts)})" if len(parts) < len(stage["parts"]) else name
        for name, stage in stages.items()
        if (parts := [key for key, part in stage["parts"].items() if part["state"] == "no time"])
    ]
    return ", ".join([*late, *(name for name in STAGES if name not in stages)])


def _options(arguments: list[str] | None):
    summary = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m bench.prove", description=summary)
    add = parser.add_argument
    add("--stages", type=_stages, default=list(PLAN), help=f"of {', '.join(STAGES)}; a list")
    add("--only", type=_operations, default=[], help="operations, for the stages that go by them")
    add("--minutes", type=float, default=9.0, help="for everything together")
    add("--out", type=Path, default=Path("out-prove"), metavar="DIR", help="result and log")
    add("--commit", help="what to call this state, in a copy of the files without .git")
    return parser.parse_args(arguments)


def _stages(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no stage; known: {', '.join(STAGES)}")
    return names


def _operations(text: str) -> list[str]:
    names, known = text.split(","), list(dict.fromkeys(case.operation for case in workloads.CARD))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
    return names


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and ends what runs
    sys.exit(main())
