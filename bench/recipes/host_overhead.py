"""What a step of train.py takes beside a bare loop's: batches, schedule, checks, the record.

    python -m bench.recipes.host_overhead --json bench/results/machinery-DATE.json

The bare loop is the lecture's: get_batch, forward, backward, step, zero_grad, and nothing else. It
has the same model, kernels, dtype and optimizers, and its steps are timed in turns with those of
`gpt.training.step.Step` and `gpt.runs.progress.Progress`. The eager path; a CUDA graph has no such share.
"""

import argparse
import contextlib
import io
import statistics
import sys
from dataclasses import replace
from datetime import date
from itertools import count
from pathlib import Path

import torch

import kernels
from bench import results_file
from bench.recipes.quickstart import machine
from bench.timer import Trial, in_turns, spread, stopwatch
from bench.training import a_text
from gpt import hardware
from gpt.config.presets import PRESETS
from gpt.config.train import TrainConfig
from gpt.models.build import build
from gpt.runs.metrics import NoRecord
from gpt.runs.progress import Progress
from gpt.training.optimizers import make_optimizers
from gpt.training.step import Precision, Step, tokens_per_step

VOCABULARY = 65
SIZES = ("quickstart", "lecture-small")


def a_model(config: TrainConfig, precision: Precision):
    """The same weights each time, and their optimizers."""
    ops = kernels.load("torch")
    torch.manual_seed(config.seed)
    model = build(config.model, ops).to(precision.device)
    return model, make_optimizers(model, config, ops.adamw, precision.dtype)


def bare_loop(config: TrainConfig, precision: Precision, data):
    """A step as the lecture has it."""
    model, optimizers = a_model(config, precision)
    block_size, tokens = config.model.block_size, data.train.long()

    def get_batch():
        ix = torch.randint(len(tokens) - block_size, (config.batch_size,)).tolist()
        x = torch.stack([tokens[i : i + block_size] for i in ix])
        y = torch.stack([tokens[i + 1 : i + block_size + 1] for i in ix])
        return x, y

    def step():
        x, y = get_batch()
        with precision.autocast():
            _, loss = model(x, y)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        for optimizer in optimizers:
            optimizer.step()

    return step


def our_loop(config: TrainConfig, precision: Precision, data):
    """A step as train.py has it, with its lines, which go nowhere here."""
    model, optimizers = a_model(config, precision)
    take_step, numbers = Step(model, optimizers, data, config, precision), count()
    progress = Progress(
        NoRecord(),
        config,
        precision.device,
        {"step": 0, "seconds": 0.0, "losses": []},
        tokens_per_step=tokens_per_step(config),
        flops_per_step=1.0,
    )

    def step():
        number = next(numbers)
        progress.step(number, take_step(number))

    return step


def measure(preset: str, device: torch.device, seconds: float) -> dict:
    """The row of one preset."""
    config = PRESETS[preset]
    config = replace(config, model=replace(config.model, vocab_size=VOCABULARY))
    precision = Precision(device, hardware.choose_dtype("auto", device))
    data = a_text(VOCABULARY, device)
    loops = {"bare": bare_loop, "train.py": our_loop}
    trials = {name: Trial(loop(config, precision, data)) for name, loop in loops.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        samples = in_turns(trials, stopwatch(device), seconds)
    pairs = zip(*(samples[name].seconds for name in loops), strict=True)
    share = statistics.median(ours / bare for bare, ours in pairs)  # whatever else slows both
    bare, ours = (spread(samples[name].seconds) for name in loops)
    return {
        "preset": preset,
        "a bare loop's step, ms": round(1e3 * bare.median, 3),
        "p20-p80": f"{1e3 * bare.p20:.3f}-{1e3 * bare.p80:.3f}",
        "train.py's step, ms": round(1e3 * ours.median, 3),
        "of it, p20-p80": f"{1e3 * ours.p20:.3f}-{1e3 * ours.p80:.3f}",
        "share": f"{share:.3f}",
        "steps": len(samples["bare"].seconds),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--preset", choices=SIZES, action="append", help="all of them, unless told")
    add("--device", default="auto")
    add("--seconds", type=float, default=20.0, help="of timing, per preset")
    add("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    device, rows = hardware.choose_device(options.device), []
    for preset in options.preset or SIZES:
        rows.append(measure(preset, device, options.seconds))
        print(rows[-1], flush=True)
    if options.json:
        head = {
            "schema": results_file.SCHEMA,
            "table": "machinery",
            "date": date.today().isoformat(),
        }
        state = {"machine": machine(), "commit": results_file.commit()}
        results_file.write(options.json, {**head, **state, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
