"""Measures everything that needs a GPU: correctness, determinism and speed, in one command.

    python -m bench.prove                          the plan, in nine minutes
    python -m bench.prove --stages parity,sanitize --minutes 8 --out results

The plan: ceilings, while all cores compile the kernels of what follows; profile (losses of captured
steps against PyTorch's, the tests of CUDA graphs, time per kernel); parity (tests of the kernels
and of the model in random order, while torch.compile and peers compile); step (whole training
steps); bench (operations against baselines); loss (training to nanoGPT's best loss); sanitize
(compute-sanitizer); tune (other tiles). By name only: repeat (250 bit-equal runs).

Each stage is a process of its own with its share of the time; a failure does not stop the others.
After each stage the results are saved in one JSON file in --out, named after GPU and date; a second
run on the same day adds to it. Copy it to bench/results/ and run `python -m bench.report` to
update the tables. Exit code: 0; 1 if a stage has failed; 2 without a GPU.
"""

import argparse
import datetime
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from bench import results
from bench.prove.compile import COMPILATIONS, compile_kernels
from bench.prove.stage import Outcome, beside, no_time, run_stage, worst_state


class Stage(NamedTuple):
    module: str
    share: float  # of the time, relative to the other stages of the command
    compilations: tuple[tuple, ...] = ()  # calls made at the same time, in the plan


PLAN = {  # the shares are seconds of nine minutes
    "profile": Stage("profile", 40),
    "parity": Stage("parity", 90, COMPILATIONS),
    "step": Stage("step", 90),
    "bench": Stage("speed", 105),
    "loss": Stage("loss", 85),
    "sanitize": Stage("sanitize", 70),
    "tune": Stage("tune", 40),
}
STAGES = PLAN | {"repeat": Stage("repeat", 60)}
GPU, STAGE = "bench.prove.gpu", "bench.prove.stages."
GPU_SECONDS = 60  # at most; the ceilings take about ten
COMPILE_SHARE = 25 / 540  # of the time, at most
MAX_LINES = 12  # printed per part; the file has all


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    limit, in_plan = 60 * options.minutes, options.stages == list(PLAN)
    deadline = time.monotonic() + limit
    if not torch.cuda.is_available():
        advice = "without one, `make test` interprets the kernels and `make ledger` compiles them"
        print(f"make prove needs a CUDA GPU and PyTorch finds none; {advice}")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the stage too
    options.out.mkdir(parents=True, exist_ok=True)
    log, compile_log = options.out / "prove.log", options.out / "compile.log"
    with beside([(compile_kernels,)] if in_plan else [], COMPILE_SHARE * limit, compile_log):
        gpu = run_stage(GPU, min(GPU_SECONDS, limit), log)["gpu"]
    if gpu["state"] != "passed":
        print(f"the GPU does not work: {gpu['message']}")
        return 1
    print(f"{gpu['gpu']['name']}: {gpu['message']}", flush=True)

    made = {"commit": options.commit or results.commit(), "date": datetime.date.today().isoformat()}
    result = {"schema": results.SCHEMA, "date": made["date"], "stages": {}, "rows": []}
    result |= {"gpu": gpu["gpu"], "ceilings": gpu["ceilings"]}
    path = options.out / f"{results.stem(gpu['gpu'])}-{made['date']}.json"
    earlier = results.read(path) if path.exists() else result
    for index, name in enumerate(options.stages):
        shares, start = [STAGES[later].share for later in options.stages[index:]], time.monotonic()
        seconds = (deadline - start) * shares[0] / sum(shares)
        print(f"{name}: at most {max(seconds, 0):.0f} s", flush=True)
        parts = {name: no_time()}
        if seconds > 0:
            stage = STAGES[name]
            with beside(stage.compilations if in_plan else (), seconds, compile_log):
                parts = run_stage(STAGE + stage.module, seconds, log, options.only or ())
        for part in parts.values():
            result["rows"] += [row | made for row in part.pop("rows", [])]
        outcome = {"state": worst_state(parts.values()), "message": message(parts), "parts": parts}
        result["stages"][name] = outcome | {"seconds": round(time.monotonic() - start, 1)} | made
        results.write(path, results.merge(earlier, result))
    print(f"\n{summary(result['stages'])}\n\n{path}")
    return 1 if worst_state(result["stages"].values()) == "failed" else 0


def message(parts: dict[str, Outcome]) -> str:
    """One line for a stage: the first of its worst parts, and how many there are of its state."""
    state = worst_state(parts.values())
    worst = [name for name, part in parts.items() if part["state"] == state]
    text = parts[worst[0]]["message"] if worst else "no part was run"
    count = "" if state == "failed" else f"{len(worst)} of {len(parts)} {state}; "
    return f"{count}{worst[0]}: {text}" if len(parts) > 1 else text


def summary(stages: dict[str, dict]) -> str:
    """The lines of each stage, the table of stages, and what has not run."""
    lines = [
        f"{name}: {line}"
        for name, stage in stages.items()
        for part in stage["parts"].values()
        for line in part.get("lines", ())[:MAX_LINES]
    ]
    lines += [
        f"{name:<9}{stage['state']:<14}{stage['seconds']:>6.1f} s  {stage['message']}"
        for name, stage in stages.items()
    ]
    ran = [name for name, stage in stages.items() if stage["state"] != "no time"]
    missing = [name for name in STAGES if name not in ran]
    return "\n".join([*lines, f"not run: {', '.join(missing)}"])


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.prove", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--stages", default=",".join(PLAN), metavar="NAME,NAME", help=", ".join(STAGES))
    add("--only", action="append", help="a part of the stage, as an operation; by default all")
    add("--minutes", type=float, default=9.0, help="for the whole command")
    add("--out", type=Path, default=Path("out-prove"), metavar="DIR", help="for results and log")
    add("--commit", help="the commit to record, for a copy of the files without .git")
    options = parser.parse_args(arguments)
    options.stages = options.stages.split(",")
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"there is no stage {unknown.pop()}; choose from {', '.join(STAGES)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
