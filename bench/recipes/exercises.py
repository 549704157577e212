"""The exercises of the lecture as recipes: each trains from fixed seeds and writes its results.

    python -m bench.recipes.exercises                          all of them
    python -m bench.recipes.exercises arithmetic features      some of them

exercises.json has their options of train.py. Each writes bench/results/exercises-NAME-DATE.json,
a table of docs/exercises.md. They run on a CPU; seconds are training time, without set-up and
evaluations.
"""

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path

import torch

import kernels
from bench.recipes import common
from gpt.data.corpus import open_data
from gpt.files import read_json
from gpt.generation.int8 import quantize
from gpt.generation.load import load_model
from gpt.training.evaluation import evaluate, validation_batches
from gpt.training.precision import Precision

EXERCISES = read_json(Path(__file__).with_suffix(".json"))
STARTS = ("from scratch", "initialised from python-docs")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--text", default="auto", help="--data of train.py: tiny shakespeare")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(RECIPES):
        parser.error(f"there is no exercise {unknown.pop()}; choose from {', '.join(RECIPES)}")
    for name in options.names or RECIPES:
        common.write(f"exercises-{name}", RECIPES[name](EXERCISES[name], options.text))
    return 0


def train(folder: Path, options: str, seed: int) -> dict:
    """Train a run in `folder`; its summary."""
    return common.train(folder, *options.split(), f"--seed={seed}", "--device=cpu")


def summary_of(options: str, seed: int) -> dict:
    """The summary of a run that is not kept."""
    with tempfile.TemporaryDirectory() as folder:
        return train(Path(folder, "run"), options, seed)


def accuracies(exercise: dict, text: str) -> list[dict]:
    """The accuracy of tasks or models: the fraction of held-out problems answered correctly."""
    rows = []
    for name, options in exercise["runs"].items():
        for seed in exercise["seeds"]:
            summary = summary_of(options, seed)
            row = {exercise["label"]: name, "options": f"`{options}`", "seed": seed}
            row |= {"parameters": f"{summary['parameters']:,}", "steps": summary["steps"]}
            row["seconds"] = round(summary["training_seconds"])
            found = {score: summary.get(score) for score in exercise["scores"]}
            row |= {score: "" if one is None else f"{one:.2%}" for score, one in found.items()}
            rows.append(common.show(row))
    return rows


def features(exercise: dict, text: str) -> list[dict]:
    """Exercise 4: the effect of each change on validation loss and training time."""
    runs, losses, seconds = exercise["runs"], {}, {}
    for seed in exercise["seeds"]:  # all changes in turn: other load affects all of them alike
        for name, options in runs.items():
            summary = summary_of(f"{exercise['base']} --data {text} {options}", seed)
            losses.setdefault(name, []).append(summary["final_val_loss"])
            seconds.setdefault(name, []).append(summary["training_seconds"])
    rows, base = [], next(iter(runs))
    for name, options in runs.items():
        changes = [a - b for a, b in zip(losses[name], losses[base], strict=True)]
        ratios = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
        row = {
            "change": name,
            "options": f"`{options}`" if options else "",
            "validation loss": f"{statistics.mean(losses[name]):.4f}",
            "each seed": ", ".join(f"{loss:.4f}" for loss in losses[name]),
            "difference": f"{statistics.mean(changes):+.4f}" if options else "",
            "relative time": f"{statistics.median(ratios):.2f}x",
        }
        rows.append(common.show(row))
    return rows


def finetune(exercise: dict, text: str) -> list[dict]:
    """Exercise 3: tiny shakespeare from scratch, and initialised from a run on another text."""
    losses: dict[int, dict[str, list[float]]] = {}  # step -> start -> the loss of each seed
    options = f"{exercise['finetune']} --data {text}"
    for seed in exercise["seeds"]:
        with tempfile.TemporaryDirectory() as folder:
            first = Path(folder, "first")
            train(first, exercise["pretrain"], seed)
            for start, initial in zip(STARTS, ("", f" --init-from {first}"), strict=True):
                train(Path(folder, start), options + initial, seed)
                for line in common.evaluations(Path(folder, start)):
                    of_step = losses.setdefault(line["step"], {})
                    of_step.setdefault(start, []).append(line["val_loss"])
    rows = []
    for step, of_step in losses.items():
        row = {"step": step}
        for start, each in of_step.items():
            row[start] = f"{statistics.mean(each):.4f}"
            row[f"{start}, each seed"] = ", ".join(f"{loss:.4f}" for loss in each)
        rows.append(common.show(row))
    return rows


def int8(exercise: dict, text: str) -> list[dict]:
    """The effect of int8 weights on the size of a model and on its perplexity."""
    rows, precision = [], Precision(torch.device("cpu"), torch.float32)
    for name, options in exercise["runs"].items():
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder, "run")
            train(run, f"{options} --data {text}", exercise["seeds"][0])
            model, _, record = load_model(run, "best", kernels.load("torch"), "cpu")
        data = open_data(*(record["train"][key] for key in ("data", "data_dir", "tokenizer")))
        sizes, perplexities = [], []
        for change in (lambda model: None, quantize):
            change(model)
            sizes.append(sum(weight.nbytes for weight in model.parameters()) / 1e6)
            batches = validation_batches(data, model.config.block_size)
            perplexities.append(math.exp(evaluate(model, batches, precision)))
        row = {
            "model": name,
            "size, MB": round(sizes[0], 2),
            "int8 size, MB": round(sizes[1], 2),
            "perplexity": round(perplexities[0], 4),
            "int8 perplexity": round(perplexities[1], 4),
            "increase": f"{perplexities[1] / perplexities[0] - 1:.2%}",
        }
        rows.append(common.show(row))
    return rows


RECIPES = {"arithmetic": accuracies, "features": features, "finetune": finetune, "int8": int8}

if __name__ == "__main__":
    sys.exit(main())
