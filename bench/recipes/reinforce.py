"""Reinforce a run of a task by right and wrong answers (gpt/exercises/reinforce.py).

    python train.py --preset addition --no-decay-lr --out-dir supervised
    python -m bench.recipes.reinforce supervised --out-dir reinforced
    python sample.py --out-dir reinforced --start "123+456="

The new run has weights to sample from or to initialise another run with (`--init-from`). Its
accuracy is that of greedy answers to held-out problems, which no stage has trained on.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

import kernels
from bench.recipes import common
from gpt import UserError, hardware
from gpt.config.base import Config, option
from gpt.data.tasks import is_task, open_task
from gpt.exercises.reinforce import ReinforceConfig, accuracy, reinforce
from gpt.generation.int8 import is_quantized
from gpt.generation.load import load_model
from gpt.runs import checkpoint
from gpt.runs.portable_state import portable_state
from sample import load_ops


@dataclass(frozen=True)
class Options(Config):
    run: str = option("out", "trained with --data addition-3, calculator, ...", positional=True)
    out_dir: str = option("", "a new folder")
    kernels: str = option("auto", "auto, triton, torch, reference, or triton,attention=torch")
    device: str = option("auto", "cuda, cuda:1, cpu or mps")
    training: ReinforceConfig = field(default_factory=ReinforceConfig)


def main(arguments: list[str] | None = None) -> int:
    return common.run(run, Options(), arguments, __doc__)


def run(options: Options) -> None:
    # the model and its task
    device = hardware.choose_device(options.device)
    ops = load_ops(options.kernels, device)
    model, tokenizer, record = load_model(Path(options.run), "best", ops, device)
    name = str(record["train"].get("data"))
    if not is_task(name):
        raise UserError(f"{options.run} was trained on {name}, which is not a task with answers")
    if is_quantized(model):
        raise UserError(f"{options.run} has int8 weights; name the run that it was made from")
    task = open_task(name).to(device)
    folder = Path(options.out_dir)
    try:  # now, so that the result of training can be saved
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out-dir {folder}: {error.strerror}; give a new folder") from None

    # reinforcement
    config = options.training
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
        "reinforce": {**config.to_dict(), "run": options.run, **scores},
    }
    checkpoint.save(folder, {"best": ("weights",)}, {"weights": portable_state(model)}, record)
    print(f"the run is in {folder}")


if __name__ == "__main__":
    sys.exit(main())
