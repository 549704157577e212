"""Reinforce what a run of a task has learned (gpt/exercises/reinforce.py). `--help` lists the options.

    python train.py --preset addition --no-decay-lr --out-dir supervised
    python -m bench.recipes.reinforce supervised --out-dir reinforced
    python sample.py --out-dir reinforced --start "123+456="

The new run has weights to sample from or to begin with (`--init-from`). Its accuracy is that of
the likeliest token always, on held-out problems that neither kind of training has shown.
"""

import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro
from tqdm import tqdm

import kernels
from gpt import UserError, hardware
from gpt.config.cli import SEEDS, parse
from gpt.data.tasks.arithmetic import is_task, open_task
from gpt.exercises.reinforce import ReinforceConfig, accuracy, reinforce
from gpt.generation.int8 import is_quantized
from gpt.models.build import portable_state
from gpt.runs import checkpoint
from gpt.runs.run_state import load_model
from sample import load_ops


@dataclass(frozen=True)
class Options:
    """Which run, and how."""

    run: tyro.conf.Positional[str] = ""  # of a task: --data addition-3, calculator, ...
    out_dir: str = ""  # a new folder
    reinforce: ReinforceConfig = field(default_factory=ReinforceConfig)
    kernels: str = "auto"  # auto, triton, torch, reference, or triton,attention=torch
    device: str = "auto"


def main(arguments: list[str]) -> int:
    try:
        run(check(parse(Options, Options(), arguments, "Reinforce a model of a task.")))
    except (UserError, kernels.Unavailable) as refusal:
        print(f"bench.recipes.reinforce: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbench.reinforce: stopped; nothing was kept", file=sys.stderr)
        return 130
    return 0


def check(options: Options) -> Options:
    """Refuse what makes no run."""
    if not options.run or not options.out_dir:
        raise UserError("name the run of a task and a new folder: RUN --out-dir NEW")
    for name, least in (("steps", 1), ("problems", 1), ("group", 2)):
        if getattr(options.reinforce, name) < least:
            raise UserError(f"--{name} must be at least {least}")
    for name in ("learning_rate", "kl"):
        if not 0 <= getattr(options.reinforce, name) < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} must be a number of at least 0")
    if not 0 <= options.reinforce.seed < SEEDS:
        raise UserError("--seed must be at least 0 and less than 2^63")
    return options


def run(options: Options) -> None:
    # the model and its task
    device, config = hardware.choose_device(options.device), options.reinforce
    ops = load_ops(options.kernels, device)
    model, tokenizer, record = load_model(Path(options.run), "best", ops, device)
    name = str(record["train"].get("data"))
    if not is_task(name):
        raise UserError(f"the run in {options.run} is of {name}, and no task's: no reward is known")
    if is_quantized(model):
        raise UserError(f"the run in {options.run} is int8; name the run that it was made from")
    task = open_task(name).to(device)
    folder = new_folder(options.out_dir)  # now, so that no training is lost for want of it

    # reinforcement
    before, problems = accuracy(model, task)
    print(f"{name}: {100 * before:.2f}% of {problems:,} held-out problems are right", flush=True)
    began = time.perf_counter()
    with tqdm(total=config.steps, unit="step", disable=None) as bar:

        def say(reward: float) -> None:
            bar.update()
            bar.set_postfix_str(f"reward {reward:.3f}")

        reinforce(model, task, (ops or kernels.load("torch")).adamw, config, say)
    seconds = time.perf_counter() - began
    after, _ = accuracy(model, task)
    print(f"after {config.steps} steps, {seconds:.0f} s: {100 * after:.2f}%")

    # a run to sample from
    figures = {"accuracy_before": before, "accuracy": after, "seconds": seconds}
    record = {
        "step": config.steps,
        "train": record["train"],
        "tokenizer": tokenizer.to_json(),
        "reinforce": {**asdict(config), "run": options.run, **figures},
    }
    checkpoint.save(folder, {"best": ("weights",)}, {"weights": portable_state(model)}, record)
    print(f"the run is in {folder}")


def new_folder(name: str) -> Path:
    """The folder made, or `UserError`."""
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is there already; give another --out-dir")
    except OSError as error:
        raise UserError(f"--out-dir {folder} cannot be made: {error.strerror}") from None
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
