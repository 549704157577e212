"""Reinforce a run of a task by right and wrong answers (gpt/exercises/reinforce.py).

    python train.py --preset addition --no-decay-lr --out-dir supervised
    python -m bench.recipes.reinforce supervised --out-dir reinforced
    python sample.py --out-dir reinforced --start "123+456="

The new run has weights to sample from or to initialise another run with (`--init-from`). Its
accuracy is that of greedy answers to held-out problems, which no stage has trained on.
"""

import argparse
import math
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

from tqdm import tqdm

import kernels
from bench.recipes.common import exit_code
from gpt import UserError, hardware
from gpt.data.tasks import is_task, open_task
from gpt.exercises.reinforce import ReinforceConfig, accuracy, reinforce
from gpt.generation.int8 import is_quantized
from gpt.generation.load import load_model
from gpt.runs import checkpoint
from gpt.runs.portable_state import portable_state
from sample import load_ops

LEAST = {"steps": 1, "problems": 1, "group": 2}  # of the others 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("run", type=Path, help="trained with --data addition-3, calculator, ...")
    add("--out-dir", type=Path, required=True, help="a new folder")
    add("--kernels", default="auto", help="auto, triton, torch, reference, triton,attention=torch")
    add("--device", default="auto")
    for field in fields(ReinforceConfig):
        flag, default = f"--{field.name.replace('_', '-')}", field.default
        add(flag, type=type(default), default=default, help=f"default: {default}")
    options = parser.parse_args(arguments)
    config = ReinforceConfig(**{f.name: getattr(options, f.name) for f in fields(ReinforceConfig)})
    for name, value in asdict(config).items():
        least = LEAST.get(name, 0)
        if not (least <= value and math.isfinite(value)):
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    return exit_code("reinforce", lambda: run(options, config))


def run(options: argparse.Namespace, config: ReinforceConfig) -> None:
    # the model and its task
    device = hardware.choose_device(options.device)
    ops = load_ops(options.kernels, device)
    model, tokenizer, record = load_model(options.run, "best", ops, device)
    name = str(record["train"].get("data"))
    if not is_task(name):
        raise UserError(f"{options.run} was trained on {name}, which is not a task with answers")
    if is_quantized(model):
        raise UserError(f"{options.run} has int8 weights; name the run that it was made from")
    task = open_task(name).to(device)
    make_new(options.out_dir)  # now, so that the result of training can be saved

    # reinforcement
    before, problems = accuracy(model, task)
    print(f"{name}: {100 * before:.2f}% of {problems:,} held-out problems answered correctly")
    start = time.perf_counter()
    with tqdm(total=config.steps, unit="step", disable=None) as bar:

        def show(reward: float) -> None:
            bar.update()
            bar.set_postfix_str(f"reward {reward:.3f}")

        reinforce(model, task, (ops or kernels.load("torch")).adamw, config, show)
    seconds = time.perf_counter() - start
    after, _ = accuracy(model, task)
    print(f"after {config.steps} steps, {seconds:.0f} s: {100 * after:.2f}%")

    # a run to sample from
    scores = {"accuracy_before": before, "accuracy": after, "seconds": seconds}
    record = {
        "step": config.steps,
        "train": record["train"],
        "tokenizer": tokenizer.to_json(),
        "reinforce": {**asdict(config), "run": str(options.run), **scores},
    }
    checkpoint.save(
        options.out_dir, {"best": ("weights",)}, {"weights": portable_state(model)}, record
    )
    print(f"the run is in {options.out_dir}")


def make_new(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"--out-dir {folder} is not empty; give a new folder")
    except OSError as error:
        raise UserError(f"--out-dir {folder} cannot be created: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
