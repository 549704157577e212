"""Times whole training steps: milliseconds, tokens per second, utilisation and peak memory.

A step is the gather of the batch, forward, backward, clipping and the update. Model and tokens are
random and on the device, so losses have no meaning. nanoGPT's step is assembled from its own model
and optimizer as in its train.py, with torch.compile, at the same sizes.
"""

import gc
import itertools
import time
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

import kernels
from bench import checkouts
from bench.timer import spread
from gpt import hardware
from gpt.config.presets import PRESETS
from gpt.config.train import TrainConfig
from gpt.data.batches import TokenDataset
from gpt.data.tokenizers import ByteTokenizer
from gpt.models.build import build
from gpt.training import make_step as training_step
from gpt.training.make_step import batch_plan, choose_step
from gpt.training.optimizers import make_optimizers
from gpt.training.precision import Precision

WARM_UP = 8  # steps: three before the capture of a graph, the capture, and some replays
GROUP = 5  # steps that are timed together
MIN_GROUPS = 3
TOKENS = 1_000_000  # of the random text

# changes to the presets, for comparable sizes
SIZES = {
    "lecture": {},
    "shakespeare-char": {},
    "gpt2": {"batch_size": 32, "gradient_accumulation_steps": 1},  # one pass is one step
}
VOCABULARY = {"gpt2": 50304}  # padded as in nanoGPT; of the others: 65


class Variant(NamedTuple):
    """An implementation of the training step."""

    kernels: str  # reference, torch, triton, nanogpt
    compile: bool = False
    step: str = "eager"

    def __str__(self):
        return f"{self.kernels}{' compiled' if self.compile else ''}, {self.step}"


VARIANTS = (  # most important first, because time may run out
    Variant("triton", step="graph"),
    Variant("torch", compile=True, step="graph"),
    Variant("nanogpt", compile=True),
    Variant("torch", step="graph"),
    Variant("reference"),
)


def measure(preset: str, variant: Variant, device: torch.device, seconds: float, nanogpt=None):
    """Time steps for about `seconds`; return a row. nanogpt: the path of its checkout."""
    config = configuration(preset)
    precision = Precision(device, hardware.choose_dtype("auto", device))
    data = random_data(config.model.vocab_size, device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    step, parameters = make_step(config, variant, data, precision, nanogpt)
    times = timed_steps(step, device, seconds)
    median, *p20_p80 = spread(times)
    peak, rate = hardware.peak_flops(device), batch_plan(config).tokens_per_step / median
    return {
        "preset": preset,
        **variant._asdict(),
        "dtype": str(precision.dtype).removeprefix("torch."),
        "batch_size": config.batch_size,
        "block_size": config.model.block_size,
        "milliseconds": 1e3 * median,
        "milliseconds_p20_p80": [1e3 * t for t in p20_p80],
        "steps": len(times) * GROUP,
        "tokens_per_second": rate,
        "mfu": rate * hardware.flops_per_token(config.model, parameters) / peak if peak else None,
        "peak_memory_bytes": hardware.peak_memory(device),
    }


def configuration(preset: str, **changes) -> TrainConfig:
    """The preset at the measured size. changes: to its ModelConfig."""
    config = replace(PRESETS[preset], **SIZES.get(preset, {}))
    changes = {"vocab_size": VOCABULARY.get(preset, 65)} | changes
    return replace(config, model=replace(config.model, **changes))


def random_data(vocabulary: int, device: torch.device) -> TokenDataset:
    """Random tokens on the device."""
    tokens = torch.randint(vocabulary, (TOKENS,), dtype=torch.int32, device=device)
    return TokenDataset("random", tokens, tokens, ByteTokenizer(), device)


def timed_steps(step, device: torch.device, seconds: float) -> list[float]:
    """Seconds per step of each group; as in training, the host waits only after a group."""
    numbers, times = itertools.count(), []

    def run(count: int) -> float:
        start = time.perf_counter()
        for number in itertools.islice(numbers, count):
            step(number)
        hardware.synchronise(device)
        return time.perf_counter() - start

    run(WARM_UP)
    deadline = time.perf_counter() + seconds
    while len(times) < MIN_GROUPS or time.perf_counter() < deadline:
        times.append(run(GROUP) / GROUP)
    return times


def make_step(config: TrainConfig, variant: Variant, data, precision: Precision, nanogpt=None):
    """The step of train.py, or of nanoGPT's, and the number of parameters."""
    torch.manual_seed(config.seed)
    device, name = precision.device, variant.kernels
    if name == "nanogpt":
        vocab_size = -(-config.model.vocab_size // 64) * 64  # padded as in its README
        model = checkouts.nanogpt(nanogpt, vars(config.model) | {"vocab_size": vocab_size})
    else:
        ops = None if name == "reference" else kernels.load(name, device)
        model = build(config.model, ops)
    model.to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    compiled = torch.compile(model, dynamic=False) if variant.compile else model
    if name == "nanogpt":
        rates = (config.weight_decay, config.learning_rate, (config.beta1, config.beta2))
        optimizer = model.configure_optimizers(*rates, device.type)
        return partial(nanogpt_step, compiled, optimizer, config, data, precision), parameters
    adamw = (ops or kernels.load("torch")).adamw
    optimizers = make_optimizers(model, config, adamw, precision.dtype)
    kind, _ = choose_step(replace(config, step=variant.step), precision, data)
    parts = (compiled, optimizers, data, config, precision)
    return training_step.make_step(kind, *parts), parameters


def nanogpt_step(model, optimizer, config: TrainConfig, data, precision: Precision, number: int):
    """The body of nanoGPT's loop, with our batches; returns the loss."""
    first_row = number * config.batch_size
    x, y = data.batch(config.seed, first_row, config.batch_size, config.model.block_size)
    with precision.autocast():
        _, loss = model(x.contiguous(), y.contiguous())  # as nanoGPT's batches are
    loss.backward()
    if config.grad_clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss
