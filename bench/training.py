"""Whole training steps, timed: milliseconds, tokens per second, utilisation, peak memory.

    python -m bench.training --preset lecture --kernels triton --step graph
    python -m bench.training --preset gpt2 --nanogpt PATH_OF_A_CHECKOUT

A step is all of it: the batch's gather, forward, backward, clipping, update. Tokens are random and
lie on the device; so is the model, so no loss is told. nanoGPT's step is put together from its own
model and optimizer as its train.py does, with torch.compile, at the same sizes.
"""

import argparse
import gc
import itertools
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

import kernels
from bench import checkouts
from bench.timer import spread
from gpt import hardware
from gpt.config.presets import PRESETS
from gpt.config.train import TrainConfig
from gpt.data.batches import Data
from gpt.data.tokenizers import ByteTokenizer
from gpt.models.build import build
from gpt.training.optimizers import make_optimizers
from gpt.training.step import Precision, choose_step, tokens_per_step

WARM_UP = 8  # steps: three before a graph is captured, the capture, and some replays
GROUP = 5  # steps, of which one time is taken
LEAST_GROUPS = 3
TOKENS = 1_000_000  # of the random text

# what a recipe's own preset has, where a benchmark wants a number of its own
SIZES = {
    "lecture": {},
    "shakespeare-char": {},
    "gpt2": {"batch_size": 32, "gradient_accumulation_steps": 1},  # one pass is one step
}
VOCABULARY = {"lecture": 65, "shakespeare-char": 65, "gpt2": 50304}  # padded, as nanoGPT has it


class Way(NamedTuple):
    """How a preset's step is computed."""

    kernels: str  # reference, torch, triton, nanogpt
    compile: bool = False
    step: str = "eager"

    def __str__(self):
        return f"{self.kernels}{' compiled' if self.compile else ''}, {self.step}"


WAYS = (  # in the order in which they are timed: time may run out
    Way("triton", step="graph"),
    Way("torch", compile=True, step="graph"),
    Way("nanogpt", compile=True),
    Way("torch", step="graph"),
    Way("torch", compile=True),
    Way("triton"),
    Way("reference"),
    Way("torch"),
)


def measure(preset: str, way: Way, device: torch.device, seconds: float, nanogpt=None) -> dict:
    """Time steps for about so many seconds; the row of figures."""
    config = configuration(preset)
    precision = Precision(device, hardware.choose_dtype("auto", device))
    data = a_text(config.model.vocab_size, device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    make = a_nanogpt_step if way.kernels == "nanogpt" else a_step
    step, parameters = make(config, way, data, precision, nanogpt)
    times = timed_steps(step, device, seconds)
    median, *p20_p80 = spread(times)
    peak = hardware.peak_flops(device)
    flops = hardware.flops_per_token(config.model, parameters) * tokens_per_step(config)
    return {
        "preset": preset,
        **way._asdict(),
        "dtype": str(precision.dtype).removeprefix("torch."),
        "batch_size": config.batch_size,
        "block_size": config.model.block_size,
        "milliseconds": 1e3 * median,
        "milliseconds_p20_p80": [1e3 * t for t in p20_p80],
        "steps": len(times) * GROUP,
        "tokens_per_second": tokens_per_step(config) / median,
        "mfu": flops / median / peak if peak else None,
        "peak_memory_bytes": hardware.peak_memory(device),
    }


def configuration(preset: str, **changes) -> TrainConfig:
    """The preset at the size that is measured; `changes` are of the model."""
    config = replace(PRESETS[preset], **SIZES.get(preset, {}))
    changes = {"vocab_size": VOCABULARY.get(preset, 65)} | changes
    return replace(config, model=replace(config.model, **changes))


def a_text(vocabulary: int, device: torch.device, generator=None) -> Data:
    """Random tokens on the device."""
    options = {"dtype": torch.int32, "device": device, "generator": generator}
    tokens = torch.randint(vocabulary, (TOKENS,), **options)
    return Data("random", tokens, tokens, ByteTokenizer(), device)


def timed_steps(step, device: torch.device, seconds: float) -> list[float]:
    """Seconds per step of groups of steps, as in training: the host waits after a group alone."""
    numbers, times = itertools.count(), []

    def steps(count: int) -> float:
        began = time.perf_counter()
        for number in itertools.islice(numbers, count):
            step(number)
        hardware.synchronise(device)
        return time.perf_counter() - began

    steps(WARM_UP)
    deadline = time.perf_counter() + seconds
    while len(times) < LEAST_GROUPS or time.perf_counter() < deadline:
        times.append(steps(GROUP) / GROUP)
    return times


def a_step(config: TrainConfig, way: Way, data: Data, precision: Precision, nanogpt):
    """The step of train.py, and the number of parameters."""
    device = precision.device
    ops = None if way.kernels == "reference" else kernels.load(way.kernels, device)
    torch.manual_seed(config.seed)
    model = build(config.model, ops).to(device)
    adamw = (ops or kernels.load("torch")).adamw
    optimizers = make_optimizers(model, config, adamw, precision.dtype)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    kind, _ = choose_step(replace(config, step=way.step), precision, data)
    compiled = torch.compile(model, dynamic=False) if way.compile else model
    return kind(compiled, optimizers, data, config, precision), parameters


def a_nanogpt_step(config: TrainConfig, way: Way, data: Data, precision: Precision, nanogpt):
    """nanoGPT's model, optimizer and the body of its loop, fed with our batches."""
    if nanogpt is None:
        raise ValueError("nanoGPT's step needs --nanogpt, the path of a checkout")
    module = checkouts.nanogpt(nanogpt)
    names = ("block_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    sizes = {name: getattr(config.model, name) for name in names}
    vocabulary = -(-config.model.vocab_size // 64) * 64  # padded, as its README has it
    device = precision.device
    model = module.GPT(module.GPTConfig(vocab_size=vocabulary, **sizes)).to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    betas = (config.beta1, config.beta2)
    optimizer = model.configure_optimizers(
        config.weight_decay, config.learning_rate, betas, device.type
    )
    compiled = torch.compile(model, dynamic=False) if way.compile else model

    def step(number: int):
        first_row = number * config.batch_size
        x, y = data.batch(config.seed, first_row, config.batch_size, config.model.block_size)
        with precision.autocast():
            _, loss = compiled(x.contiguous(), y.contiguous())  # as its own batches are
        loss.backward()
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step, parameters


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--preset", choices=SIZES, action="append", help="all of them, unless told")
    add("--kernels", choices=dict.fromkeys(way.kernels for way in WAYS), action="append")
    add("--step", choices=("eager", "graph"), action="append")
    add("--device", default="auto")
    add("--seconds", type=float, default=3.0, help="of timing, per way")
    add("--nanogpt", type=Path, help="a checkout of nanoGPT")
    add("--json", type=Path, help="where to write the figures, one object per line")
    options = parser.parse_args(arguments)
    device = hardware.choose_device(options.device)
    rows = []
    for preset in options.preset or SIZES:
        for way in WAYS:
            if options.kernels and way.kernels not in options.kernels:
                continue
            if way.step not in (options.step or ("eager", "graph")):
                continue
            if why_not(way, device, options.nanogpt):
                continue
            rows.append(measure(preset, way, device, options.seconds, options.nanogpt))
            print(told(rows[-1]), flush=True)
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


def why_not(way: Way, device: torch.device, nanogpt) -> str | None:
    """Why a way cannot be measured here, or None where it can."""
    if way.kernels == "nanogpt" and nanogpt is None:
        return "no checkout of nanoGPT was given"
    if way.step == "graph" and device.type != "cuda":
        return "a CUDA graph needs a card"
    if way.kernels == "triton":
        return kernels.unavailable_reason(device)
    return None


def told(row: dict) -> str:
    way = Way(row["kernels"], row["compile"], row["step"])
    mfu = f", mfu {100 * row['mfu']:.1f}%" if row["mfu"] else ""
    return (
        f"{row['preset']}, {way}: {row['milliseconds']:.2f} ms, "
        f"{row['tokens_per_second']:,.0f} tok/s{mfu}, {row['peak_memory_bytes'] / 2**30:.2f} GiB"
    )


if __name__ == "__main__":
    sys.exit(main())
