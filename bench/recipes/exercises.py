"""The lecture's exercises as recipes: each is run from its seeds, and its figures are written down.

    python -m bench.recipes.exercises                          all of them, one after the other
    python -m bench.recipes.exercises arithmetic features      these
    python -m bench.recipes.exercises --minutes 15             those that take no longer

Each writes bench/results/exercises-NAME-DATE.json, whose table stands in docs/exercises.md. All of
them are for a CPU; seconds are those of training, without set-up and without evaluations.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from bench import results_file
from bench.recipes.quickstart import ROOT, machine
from gpt.runs.metrics import read_metrics

ARITHMETIC = {  # what is trained -> options of train.py
    "addition, 3 digits": "--preset addition",
    "addition, 8 digits": (
        "--preset addition --data addition-8 --block-size 27 --n-layer 3 --max-iters 1800"
    ),
    "calculator, with scratchpad": "--preset calculator",
    "calculator, without": "--preset calculator --data calculator-direct --block-size 12",
}

# A small model with the lecture's modules, and each change alone.
FEATURES_BASE = (
    "--preset quickstart --activation relu --position learned --no-qk-norm --bias "
    "--projection-init normal --optimizer adamw --learning-rate 2e-3 --warmup-iters 20 "
    "--max-iters 300 --eval-interval 300"
)
FEATURES = {
    "the lecture's modules": "",
    "GELU": "--activation gelu",
    "squared ReLU": "--activation relu_squared",
    "SwiGLU": "--activation swiglu",
    "RMSNorm": "--norm rms_norm",
    "RoPE": "--position rope",
    "QK norm": "--qk-norm",
    "grouped heads, 2 for 1": "--n-kv-head 1",
    "sliding window of 32": "--window 32",
    "logits capped at 15": "--logit-softcap 15",
    "tied head": "--tied-head",
    "projections from zero": "--projection-init zero",
    "Muon": "--optimizer muon",
    "all that the quickstart has": (
        "--activation relu_squared --position rope --qk-norm --no-bias --projection-init zero "
        "--optimizer muon --learning-rate 6e-3 --warmup-iters 5"
    ),
}
SEEDS = (1, 2, 3)

PRETRAIN = "--preset quickstart --data python-docs --max-iters 600 --eval-interval 600"
FINETUNE = "--preset quickstart --max-iters 300 --eval-interval 50"
BEGINNINGS = ("from scratch", "begun from python-docs")

PAIRS = {  # about as many parameters
    "an encoder and a decoder": "--preset dates",
    "a decoder alone": "--preset dates --source-size 0 --n-layer 5",
}

STAGES = {  # ChatGPT's stages in small: task -> stage -> options, each begun from the one before
    "addition, 3 digits": {
        "pretrained on python-docs": (
            "--preset addition --data python-docs --max-iters 100 --eval-interval 100"
        ),
        "supervised": (  # small batches and a large learning rate leave the plateaus sooner
            "--preset addition --batch-size 64 --max-iters 1500 --eval-interval 1500 --no-decay-lr"
        ),
        "reinforced": "--steps 100",  # options of bench.recipes.reinforce
    },
    "calculator": {
        "supervised": (
            "--preset calculator --batch-size 64 --max-iters 1200 --eval-interval 1200 "
            "--no-decay-lr"
        ),
        "reinforced": "--steps 60",
    },
}
STAGES_SEEDS = {"addition, 3 digits": SEEDS, "calculator": (1337,)}  # it takes ten minutes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--text", default="auto", help="for text: tiny shakespeare, as --data")
    parser.add_argument(
        "--to", type=Path, default=results_file.RESULTS, help="a folder for the figures"
    )
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="a recipe that takes longer is stopped"
    )
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in RECIPES:
            parser.error(f"there is no {name}; choose of {', '.join(RECIPES)}")
    late = []
    for name in options.names or RECIPES:
        commit, today = results_file.commit(), date.today().isoformat()
        threads = os.environ.get("OMP_NUM_THREADS", "all")
        try:
            with stopped_after(options.minutes):
                rows = RECIPES[name](options.text)
        except TimeoutError:
            print(f"{name} takes longer than {options.minutes:g} minutes, and was stopped")
            late.append(name)
            continue
        result = {
            "schema": results_file.SCHEMA,
            "table": f"exercises-{name}",
            "date": today,
            "commit": commit,
            "machine": f"{threads} thread{'s' * (threads != '1')} on {machine()}",
            "rows": rows,
        }
        results_file.write(options.to / f"exercises-{name}-{today}.json", result)
    return 1 if late else 0


@contextlib.contextmanager
def stopped_after(minutes: float):
    """Raise TimeoutError in what is done inside when it takes longer; 0 is no limit."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def train(options: str, seed: int = 1337) -> dict:
    """The summary of a run of train.py."""
    with tempfile.TemporaryDirectory() as folder:
        train_to(Path(folder, "run"), options, seed)
        return json.loads(Path(folder, "run", "summary.json").read_text())


def train_to(folder: Path, options: str, seed: int) -> list[dict]:
    """The evaluations of a run of train.py, which is left in `folder`."""
    command = [sys.executable, "train.py", *options.split(), f"--seed={seed}", "--sample=0"]
    command += ["--device=cpu", f"--out-dir={folder}"]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return [line for line in read_metrics(folder) if "val_loss" in line]


def arithmetic(text: str) -> list[dict]:
    """Exercise 2: the share of held-out problems that are answered without a mistake."""
    rows = []
    for name, options in ARITHMETIC.items():
        summary = train(options)
        row = {"task": name, "options": f"`{options}`", "seed": 1337}
        row |= {"steps": summary["steps"], "seconds": round(summary["training_seconds"])}
        for score in ("accuracy", *(f"accuracy {sign}" for sign in "+-*/")):
            share = summary.get(score)
            row[score] = "" if share is None else f"{100 * share:.2f}%"
        rows.append(show(row))
    return rows


def features(text: str) -> list[dict]:
    """Exercise 4: each change alone, its validation loss and time beside those without it."""
    losses, seconds = {}, {}
    for seed in SEEDS:  # all of a seed in turn, so that a busy hour is nobody's disadvantage
        for name, options in FEATURES.items():
            summary = train(f"{FEATURES_BASE} --data {text} {options}", seed)
            losses.setdefault(name, []).append(summary["final_val_loss"])
            seconds.setdefault(name, []).append(summary["training_seconds"])
    rows, base = [], next(iter(FEATURES))
    for name, options in FEATURES.items():
        changes = [a - b for a, b in zip(losses[name], losses[base], strict=True)]
        ratios = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
        row = {"change": name, "options": f"`{options}`" if options else ""}
        row["validation loss"] = f"{statistics.mean(losses[name]):.4f}"
        row["of the seeds"] = ", ".join(f"{loss:.4f}" for loss in losses[name])
        row["change of the loss"] = f"{statistics.mean(changes):+.4f}" if options else ""
        row["time"] = f"{statistics.median(ratios):.2f}x"
        rows.append(show(row))
    return rows


def finetune(text: str) -> list[dict]:
    """Exercise 3: tiny shakespeare from scratch, and from a run on another text, step by step."""
    losses: dict[int, list[tuple[float, float]]] = {}  # step -> of each seed
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            train_to(Path(folder, "first"), PRETRAIN, seed)
            scratch = train_to(Path(folder, "scratch"), f"{FINETUNE} --data {text}", seed)
            options = f"{FINETUNE} --data {text} --init-from {folder}/first"
            begun = train_to(Path(folder, "begun"), options, seed)
        for one, other in zip(scratch, begun, strict=True):
            losses.setdefault(one["step"], []).append((one["val_loss"], other["val_loss"]))
    rows = []
    for step, pairs in losses.items():
        row = {"step": step}
        for name, each in zip(BEGINNINGS, zip(*pairs, strict=True), strict=True):
            row[name] = f"{statistics.mean(each):.4f}"
            row[f"{name}, of the seeds"] = ", ".join(f"{loss:.4f}" for loss in each)
        rows.append(show(row))
    return rows


def pairs(text: str) -> list[dict]:
    """The lecture's notes: dates read by an encoder and cross-attention, and by a decoder alone."""
    rows = []
    for name, options in PAIRS.items():
        for seed in SEEDS:
            summary = train(options, seed)
            row = {"model": name, "options": f"`{options}`", "seed": seed}
            row |= {"parameters": f"{summary['parameters']:,}", "steps": summary["steps"]}
            row["seconds"] = round(summary["training_seconds"])
            rows.append(show(row | {"accuracy": f"{100 * summary['accuracy']:.2f}%"}))
    return rows


def stages(text: str) -> list[dict]:
    """The lecture's last chapter: how many of the held-out problems each stage gets wrong."""
    rows = []
    for task, options_of in STAGES.items():
        for seed in STAGES_SEEDS[task]:
            with tempfile.TemporaryDirectory() as folder:
                rows += stages_of(Path(folder), task, seed, options_of)
    return rows


def stages_of(folder: Path, task: str, seed: int, options_of: dict[str, str]) -> list[dict]:
    rows, before = [], None
    for number, (stage, options) in enumerate(options_of.items()):
        run = folder / str(number)
        if stage == "reinforced":
            command = [
                sys.executable,
                "-m",
                "bench.recipes.reinforce",
                str(before),
                *options.split(),
            ]
            command += [f"--seed={seed}", "--device=cpu", f"--out-dir={run}"]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            found = json.loads((run / "best.json").read_text())["reinforce"]
            steps, seconds = found["steps"], found["seconds"]
            rows[-1] |= right_and_wrong(found["accuracy_before"])  # by results alone too
        else:
            train_to(run, f"{options} --init-from {before}" if before else options, seed)
            found = json.loads((run / "summary.json").read_text())
            steps, seconds = found["steps"], found["training_seconds"]
        row = {"task": task, "seed": seed, "stage": stage, "options": f"`{options}`"}
        row |= {"steps": steps, "seconds": round(seconds)}
        rows.append(show(row | right_and_wrong(found.get("accuracy"))))
        before = run
    return rows


def right_and_wrong(accuracy: float | None) -> dict:
    """Of a task; a text has neither."""
    if accuracy is None:
        return {"accuracy": "", "errors": ""}
    return {"accuracy": f"{100 * accuracy:.2f}%", "errors": f"{100 * (1 - accuracy):.2f}%"}


def show(row: dict) -> dict:
    print(json.dumps(row), flush=True)
    return row


RECIPES = {
    "arithmetic": arithmetic,
    "features": features,
    "finetune": finetune,
    "pairs": pairs,
    "stages": stages,
}

if __name__ == "__main__":
    sys.exit(main())
