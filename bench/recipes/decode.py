"""Generation speed in tokens per second, ours and peers', and the limit of memory bandwidth.

    python -m bench.recipes.decode --lecture PATH/gpt.py --nanogpt PATH_OF_A_CHECKOUT --json FILE

Each implementation samples from one token on: 1,000 tokens with the lecture's model, 256 with
GPT-2's, with random weights. Peers run unmodified, without dropout. The rate excludes the first
token, whose latency has its own column.

An implementation that has not finished after --seconds is stopped; its row has the number of
tokens that it generated. If it recomputes the whole context for each token, its rate is then too
high, because a short context is faster. The lecture crops its context anew for every token;
"slide 64" crops it once in 64 tokens, like `sample.py --slide 64`. The int8 of llama.cpp, which is
compared at batch 1 on a CPU where llama-cpp-python is installed, is its Q8_0.

The memory limit reads every weight, keys and values once per token of each row, at the rate
(bytes read plus written) of a copy measured in the same run.
"""

import contextlib
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

import kernels
from bench import checkouts, results
from bench.compare import Failed, attempt
from bench.recipes import common, llama_cpp
from bench.timer import copy_rate, make_timer
from gpt import hardware
from gpt.config.model import ModelConfig
from gpt.config.presets import PRESETS
from gpt.generation.generate import READ_EVERY, generate
from gpt.generation.int8 import quantize
from gpt.models.build import build

BATCHES = (1, 8, 64)
NEW = {"lecture": 1000, "gpt2": 256}  # tokens: far beyond the lecture's block, within GPT-2's
VOCABULARY = {"lecture": 65, "gpt2": 50257}
SLIDE = 64  # tokens; the context then has at least 193 of its 256 tokens
RUNS = 3  # at most, within the time
COPIED = 2**27  # numbers of 16 bits: more than any cache holds
LOW = "bfloat16"

Peers = dict[str, Path | None]  # the lecture's gpt.py, and a checkout of nanoGPT
# generate(tokens (B, 1), new) appends `new` tokens to each row, and yields `count` whenever `count`
# more tokens per row are on the host
Generate = Callable[[torch.Tensor, int], Iterator[int]]


class Decoder(NamedTuple):
    implementation: str  # a peer, or one of ours: reference, torch, triton
    dtype: str = "float32"  # of weights and cache
    slide: int = 1
    int8: bool = False

    def __str__(self):
        dtype = f"int8 and {self.dtype}" if self.int8 else self.dtype
        slide = f", slide {self.slide}" if self.slide > 1 else ""
        return f"{self.implementation}, {dtype}{slide}"


def decoders(model: str, batch: int, device: torch.device) -> list[Decoder]:
    """The decoders of a model; the first is the baseline of the speedups.

    The lecture's model computes in fp32, like its file; GPT-2 in the dtype of nanoGPT's sample.py.
    """
    low, fast = (LOW, "triton") if device.type == "cuda" else ("float32", "torch")
    if model == "gpt2":
        ours = [Decoder("torch", low), Decoder(fast, LOW), Decoder(fast, LOW, int8=True)]
        if device.type == "cpu" and batch == 1:  # each beside its peer
            pairs = [(one, one._replace(implementation="llama.cpp")) for one in ours]
            ours = list(sum(pairs, ()))
        return [Decoder("nanogpt", low), *ours]
    found = [Decoder("lecture"), Decoder("nanogpt", low), Decoder("reference")]
    found += [Decoder("torch", low, SLIDE), Decoder(fast, low), Decoder(fast, low, SLIDE)]
    found += [Decoder(fast, LOW, SLIDE), Decoder(fast, LOW, SLIDE, int8=True)]
    return list(dict.fromkeys(found))


def sizes(model: str) -> ModelConfig:
    return replace(PRESETS[model].model, vocab_size=VOCABULARY[model])


def make_generate(config: ModelConfig, decoder: Decoder, device, peers: Peers) -> Generate:
    """A model of these sizes with random weights, as a function that generates."""
    dtype, name = getattr(torch, decoder.dtype), decoder.implementation
    torch.manual_seed(0)
    if name in peers and peers[name] is None:
        raise ValueError(f"its file is missing; give --{name}")
    if name == "lecture":
        model = checkouts.lecture(peers["lecture"], config.vocab_size, device)
        return in_pieces(model.to(device).eval())
    if name == "nanogpt":
        model = checkouts.nanogpt(peers["nanogpt"], vars(config)).to(device).eval()
        return in_pieces(model, torch.autocast(device.type, dtype, dtype != torch.float32))
    if name == "llama.cpp":
        return llama_cpp.generator(config, "int8" if decoder.int8 else decoder.dtype)
    model = build(config, None if name == "reference" else kernels.load(name, device))
    if decoder.int8:
        quantize(model)
    model.to(device, dtype)
    return lambda tokens, new: (1 for _ in generate(model, tokens, new, slide=decoder.slide))


def in_pieces(model, context=None) -> Generate:
    """A model whose `generate` returns all tokens at its end, called as often as ours are read."""

    @torch.no_grad()
    def run(tokens, new):
        made = 0
        while made < new:
            piece = READ_EVERY if made and tokens.device.type == "cuda" else 1
            piece = min(piece, new - made)
            with context or contextlib.nullcontext():
                tokens = model.generate(tokens, piece)
            hardware.synchronise(tokens.device)
            made += piece
            yield piece

    return run


def compare(model: str, batch: int, device, seconds: float, peers: Peers) -> Iterator[dict]:
    """Print and yield the row of every decoder, timed for about `seconds`; print the failures.

    Each row has its speedup over the first decoder, the model's own implementation.
    """
    copy = copy_rate(make_timer(device), COPIED)
    baseline = None
    for number, decoder in enumerate(decoders(model, batch, device)):
        row = attempt(measure, model, batch, decoder, device, seconds, peers, copy)
        if isinstance(row, Failed):
            print(f"{model}, batch {batch}, {decoder}: {row.reason}", flush=True)
            continue
        baseline = row["tokens/s"] if number == 0 else baseline
        speedup = f"{row['tokens/s'] / baseline:.1f}" if baseline else ""
        yield common.show(row | {"speedup": speedup})


def measure(model, batch, decoder, device, seconds, peers, copy: float) -> dict:
    """The row of one decoder. copy: the memory's rate in bytes per second."""
    gc.collect()
    config = sizes(model)
    generate = make_generate(config, decoder, device, peers)
    tokens = torch.zeros((batch, 1), dtype=torch.int64, device=device)
    warm_up = min(config.block_size + 2 * READ_EVERY, NEW[model])  # until the context has moved
    timed_run(generate, tokens, warm_up, seconds / 4)  # loads, compiles, allocates
    runs = []
    while not runs or (len(runs) < RUNS and sum(run["seconds"] for run in runs) < seconds / 2):
        runs.append(timed_run(generate, tokens, NEW[model], seconds))
    made = min(run["made"] for run in runs)
    limit = batch * copy / bytes_per_token(config, batch, decoder, made)
    rates = [batch * (run["made"] - 1) / run["seconds"] for run in runs]
    return {
        "model": model,
        "batch": batch,
        "implementation": str(decoder),
        "tokens per row": made,
        "runs": len(runs),
        "first token, ms": rounded(1e3 * statistics.median(run["first"] for run in runs)),
        "tokens/s": rounded(statistics.median(rates)),
        "range": f"{rounded(min(rates))}-{rounded(max(rates))}",
        "memory limit, tokens/s": rounded(limit),
    }


def timed_run(generate: Generate, tokens: torch.Tensor, new: int, seconds: float) -> dict:
    """One run: tokens made per row, seconds to the first token and from there to the last."""
    made, first, last = 0, 0.0, 0.0
    start = time.perf_counter()
    for count in generate(tokens, new):
        last = time.perf_counter() - start
        first, made = first or last, made + count
        if last > seconds and made > 1:
            break
    return {"made": made, "first": first, "seconds": last - first}


def bytes_per_token(config: ModelConfig, batch: int, decoder: Decoder, made: int) -> float:
    """The least bytes read for a token of each row: weights, and the cache of a mean context."""
    C, L, T, V = config.n_embd, config.n_layer, config.block_size, config.vocab_size
    item = getattr(torch, decoder.dtype).itemsize
    H, Hkv, _ = config.head_counts
    cached = 2 * C * Hkv // H  # keys and values of one token in one layer
    matrices = (10 * C + cached) * L * C + V * C
    longest = min(config.window or T, T)
    context = statistics.mean(min(length, longest) for length in range(1, made + 1))
    return matrices * (1 if decoder.int8 else item) + batch * context * L * cached * item


def rounded(value: float) -> float:
    return round(value) if value >= 100 else float(f"{value:.3g}")


def main(arguments: list[str] | None = None) -> int:
    parser = common.parser(__doc__)
    add = parser.add_argument
    add("--model", choices=NEW, action="append", help="default: all")
    add("--batch", type=int, action="append", help=f"default: {BATCHES}")
    add("--lecture", type=Path, help="the lecture's gpt.py")
    add("--nanogpt", type=Path, help="a checkout of nanoGPT")
    add("--device", default="auto")
    add("--seconds", type=float, default=20.0, help="of timing, per implementation")
    options = parser.parse_args(arguments)
    device = hardware.choose_device(options.device)
    hardware.keep_freed_memory(device)  # as sample.py
    torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a plan for each new length
    peers, rows = {"lecture": options.lecture, "nanogpt": options.nanogpt}, []
    table, machine = "decode", ""
    if device.type == "cuda":
        machine = "{name}, driver {driver}, torch {torch}, triton {triton}".format(**results.gpu())
        table = "decode-gpu"
    for model in options.model or NEW:
        for batch in options.batch or BATCHES:
            rows += compare(model, batch, device, options.seconds, peers)
            common.write(table, rows, options.json, machine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
