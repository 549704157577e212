"""Measures everything that needs a GPU: correctness, determinism and speed, in one command.

    python -m bench.prove                          the plan, in nine minutes
    python -m bench.prove --stages parity,sanitize --minutes 8 --out results

The plan, most important first: ceilings, while all cores compile the kernels of what follows;
profile (losses of captured steps against PyTorch's, the tests of CUDA graphs, time per kernel);
step (whole training steps); bench (pytest-benchmark against baselines); tune (other tiles); parity
(the tests of the kernels and of the model in random order, while torch.compile compiles); compiled
(training steps with torch.compile); loss (training to nanoGPT's best loss). By name only: decode
(generation), repeat (250 bit-equal runs), sanitize (compute-sanitizer) and ledger (the loaded
kernels against the committed ones).

Each stage is a process of its own with its share of the time; a failure does not stop the others.
After each stage the results are saved in one JSON file in --out, named after GPU and date; a second
run on the same day adds to it. Copy it to bench/results/ and run `python -m bench.report` to
update the tables. Exit code: 0; 1 if a stage has failed; 2 without a GPU.
"""

import argparse
import contextlib
import datetime
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from bench import results
from bench.prove.run import beside, run_stage
from bench.prove.stage import Outcome, no_time, worst_state
from bench.prove.stages import step
from bench.workloads import timed


class Stage(NamedTuple):
    module: str
    share: float  # of the time, relative to the other stages of the command
    by_operation: bool = False  # its parts are operations, which --only selects
    plan_parts: tuple[str, ...] = ()  # the parts that run in the plan; by name all run
    compile: tuple[str, ...] = ()  # parts of bench.prove.compile that run at the same time


PLAN = {  # the shares are seconds of nine minutes
    "profile": Stage("profile", 60),
    "step": Stage("step", 60, plan_parts=tuple(step.UNCOMPILED)),
    "bench": Stage("speed", 130, by_operation=True),
    "tune": Stage("tune", 80, by_operation=True),
    "parity": Stage("parity", 100, compile=("torch.compile",)),
    "compiled": Stage("step", 60, plan_parts=tuple(step.COMPILED)),
    "loss": Stage("loss", 30),
}
STAGES = PLAN | {
    "decode": Stage("decode", 60),
    "repeat": Stage("repeat", 60, by_operation=True),
    "sanitize": Stage("sanitize", 120),
    "ledger": Stage("ledger", 30, by_operation=True),
}
GPU, COMPILE, STAGE = "bench.prove.gpu", "bench.prove.compile", "bench.prove.stages."
GPU_SECONDS = 60  # at most; the ceilings take about ten
COMPILE_SHARE = 20 / 540  # of the time, at most
MAX_LINES = 12  # printed per part; the file has all
LOG = "prove.log"


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    if not torch.cuda.is_available():
        print(
            "make prove needs a CUDA GPU and PyTorch finds none; without one, `make test` runs "
            "the kernels in Triton's interpreter and `make ledger` compiles them"
        )
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    date, commit = datetime.date.today().isoformat(), options.commit or results.commit()

    def save(result: dict) -> Path:
        stamped = stamp(result, date, commit)
        path = options.out / results.file_name(result["gpu"]["name"], date)
        if path.exists():
            stamped = results.merge(results.read(path), stamped)
        results.write(path, stamped)
        return path

    log = options.out / LOG
    result = prove(options.stages, 60 * options.minutes, log, save, options.only)
    if "gpu" not in result:
        print(f"the GPU does not work: {result['stages']['gpu']['message']}")
        return 1
    print(f"\n{summary(result)}\n\n{save(result)}")
    return 1 if worst_state(result["stages"].values()) == "failed" else 0


def prove(
    stages: list[str],
    seconds: float,
    log: Path,
    save: Callable[[dict], object],
    only=(),
    clock=time.monotonic,
) -> dict:
    """Run the stages within `seconds`; return {"gpu", "ceilings", "stages", "rows"}.

    `save` is called with the result so far after each stage.
    """
    deadline, in_plan = clock() + seconds, list(stages) == list(PLAN)
    with _compiling(("kernels",) if in_plan else (), COMPILE_SHARE * seconds, log):
        gpu = run_stage(GPU, min(GPU_SECONDS, seconds), log)["gpu"]
    if gpu["state"] != "passed":
        return {"stages": {"gpu": gpu}, "rows": []}
    print(f"{gpu['gpu']['name']}: {gpu['message']}", flush=True)
    result = {"gpu": gpu["gpu"], "ceilings": gpu["ceilings"], "stages": {}, "rows": []}
    for index, name in enumerate(stages):
        stage, shares = STAGES[name], [STAGES[later].share for later in stages[index:]]
        start = clock()
        allowance = (deadline - start) * shares[0] / sum(shares)
        print(f"{name}: at most {max(allowance, 0):.0f} s", flush=True)
        parts = {name: no_time()}
        if allowance > 0:
            selected = only if stage.by_operation else stage.plan_parts if in_plan else ()
            arguments = [f"--only={part}" for part in selected]
            with _compiling(stage.compile if in_plan else (), allowance, log):
                parts = run_stage(STAGE + stage.module, allowance, log, arguments)
        for part in parts.values():
            result["rows"] += part.pop("rows", [])
        result["stages"][name] = {
            "state": worst_state(parts.values()),
            "message": message(parts),
            "seconds": round(clock() - start, 1),
            "parts": parts,
        }
        save(result)
    return result


def _compiling(parts: tuple[str, ...], seconds: float, log: Path):
    """Compile `parts` of bench.prove.compile during the block."""
    if not parts:
        return contextlib.nullcontext()
    return beside(COMPILE, seconds, log, [f"--only={part}" for part in parts])


def message(parts: dict[str, Outcome]) -> str:
    """One line for a stage: the first of its worst parts, and how many there are of its state."""
    if not parts:
        return "no part was run"
    state = worst_state(parts.values())
    worst = [name for name, part in parts.items() if part["state"] == state]
    text = parts[worst[0]]["message"]
    if len(parts) == 1:
        return text
    count = "" if state == "failed" else f"{len(worst)} of {len(parts)} {state}; "
    return f"{count}{worst[0]}: {text}"


def stamp(result: dict, date: str, commit: str) -> dict:
    """The result with schema and date, and every stage and row with its commit and date."""
    state = {"commit": commit, "date": date}
    stages = {name: stage | state for name, stage in result["stages"].items()}
    rows = [row | state for row in result["rows"]]
    return {"schema": results.SCHEMA, "date": date, **result, "stages": stages, "rows": rows}


def summary(result: dict) -> str:
    """The lines of each stage, and the table of stages."""
    stages = result["stages"].items()
    lines = [
        f"{name}: {line}"
        for name, stage in stages
        for part in stage["parts"].values()
        for line in part.get("lines", ())[:MAX_LINES]
    ]
    lines += [
        f"{name:<9}{stage['state']:<14}{stage['seconds']:>6.1f} s  {stage['message']}"
        for name, stage in stages
    ]
    if missing := not_run(result["stages"]):
        lines.append(f"not run: {missing}")
    return "\n".join(lines)


def not_run(stages: dict) -> str:
    """Stages that were not selected, and parts for which no time was left."""
    late = [
        f"{name} ({', '.join(parts)})" if len(parts) < len(stage["parts"]) else name
        for name, stage in stages.items()
        if (parts := [key for key, part in stage["parts"].items() if part["state"] == "no time"])
    ]
    return ", ".join([*late, *(name for name in STAGES if name not in stages)])


def _options(arguments: list[str] | None):
    parser = argparse.ArgumentParser(
        prog="python -m bench.prove", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    stages, operations = list(STAGES), list(dict.fromkeys(case.operation for case in timed.GPU))
    add("--stages", type=partial(_list_of, stages), default=list(PLAN), help=", ".join(stages))
    add("--only", type=partial(_list_of, operations), default=[], help=", ".join(operations))
    add("--minutes", type=float, default=9.0, help="for the whole command")
    add("--out", type=Path, default=Path("out-prove"), metavar="DIR", help="for results and log")
    add("--commit", help="the commit to record, for a copy of the files without .git")
    return parser.parse_args(arguments)


def _list_of(known, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
    return names


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the stage too
    sys.exit(main())
