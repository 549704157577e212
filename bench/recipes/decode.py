"""Generation speed in tokens per second, ours and peers', and the limit of memory bandwidth.

    python -m bench.recipes.decode --lecture PATH/gpt.py --nanogpt PATH_OF_A_CHECKOUT --json FILE

Each implementation samples from one token on: 1,000 tokens with the lecture's model, 256 with
GPT-2's, with random weights. Peers run unmodified, without dropout. The rate excludes the first
token, whose latency has its own column.

An implementation that has not finished after --seconds is stopped; its row has the number of
tokens that it generated. If it recomputes the whole context for each token, its rate is then too
high, because a short context is faster. The lecture crops its context anew for every token;
"slide 64" crops it once in 64 tokens, like `sample.py --slide 64`.

The memory limit reads every weight, keys and values once per token of each row, at the rate
(bytes read plus written) of a copy measured in the same run.
"""

import contextlib
import gc
import statistics
import sys
import time
from pathlib import Path

import torch

from bench.compare import Failed, attempt
from bench.recipes import common
from bench.recipes.decoders import (
    Decoder,
    Generate,
    Peers,
    decoders,
    make_generate,
    sizes,
    unavailable_reason,
)
from bench.timer import Trial, make_timer, time_interleaved
from gpt import hardware
from gpt.config.model import ModelConfig
from gpt.generation.generate import READ_EVERY

BATCHES = (1, 8, 64)
NEW = {"lecture": 1000, "gpt2": 256}  # tokens: far beyond the lecture's block, within GPT-2's
RUNS = 3  # at most, within the time
COPIED = 2**28  # bytes


class TimeOver(Exception):
    """Raised in a decoder's callback to stop it."""


def compare(model: str, batch: int, device: torch.device, seconds: float, peers: Peers):
    """Time every decoder for about `seconds` each; returns rows, and lines for those that failed.

    Each row has its speedup over the first decoder, the model's own implementation.
    """
    copy, rows, lines = copy_rate(device), [], []
    every = decoders(model, device)
    for decoder in every:
        if reason := unavailable_reason(decoder, device, peers):
            row = Failed(reason, "")
        else:
            row = attempt(measure, model, batch, decoder, device, seconds, peers, copy)
        if isinstance(row, Failed):
            lines.append(f"{model}, batch {batch}, {decoder}: {row.reason}")
        else:
            rows.append(row)
    rates = {row["implementation"]: row["tokens/s"] for row in rows}
    baseline = rates.get(str(every[0]))
    for row in rows:
        row["speedup"] = f"{row['tokens/s'] / baseline:.1f}" if baseline else ""
    return rows, lines


def measure(
    model: str,
    batch: int,
    decoder: Decoder,
    device: torch.device,
    seconds: float,
    peers: Peers,
    copy: float,
) -> dict:
    """The row of one decoder. copy: the memory's rate in bytes per second."""
    gc.collect()
    config = sizes(model)
    generate = make_generate(config, decoder, device, peers)
    tokens = torch.zeros((batch, 1), dtype=torch.int64, device=device)
    timed_run(generate, tokens, 2 * READ_EVERY, seconds / 4)  # loads, compiles, allocates
    runs = [timed_run(generate, tokens, NEW[model], seconds)]
    while len(runs) < RUNS and sum(run["seconds"] for run in runs) < seconds / 2:
        runs.append(timed_run(generate, tokens, NEW[model], seconds))
    made = min(run["made"] for run in runs)
    limit = batch * copy / bytes_per_token(config, batch, decoder, made)
    rate = statistics.median(batch * (run["made"] - 1) / run["seconds"] for run in runs)
    first = statistics.median(run["first"] for run in runs)
    return {
        "model": model,
        "batch": batch,
        "implementation": str(decoder),
        "tokens per row": made,
        "runs": len(runs),
        "first token, ms": rounded(1e3 * first),
        "tokens/s": rounded(rate),
        "memory limit, tokens/s": rounded(limit),
    }


def timed_run(generate: Generate, tokens: torch.Tensor, new: int, seconds: float) -> dict:
    """One run: tokens made per row, seconds to the first token and from there to the last."""
    made, first, last = 0, 0.0, 0.0
    start = time.perf_counter()

    def on_tokens(count: int) -> None:
        nonlocal made, first, last
        last = time.perf_counter() - start
        first, made = first or last, made + count
        if last > seconds and made > 1:
            raise TimeOver

    with contextlib.suppress(TimeOver):
        generate(tokens, new, on_tokens)
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


def copy_rate(device: torch.device) -> float:
    """Bytes per second, read plus written, of a copy larger than any cache."""
    source = torch.randn(COPIED // 4, device=device)
    target = torch.empty_like(source)
    trials = {"copy": Trial(lambda: target.copy_(source))}
    samples = time_interleaved(trials, make_timer(device), 0.3)
    return 2 * COPIED / statistics.median(samples["copy"].seconds)


def rounded(value: float) -> float:
    return round(value) if value >= 100 else float(f"{value:.3g}")


def describe(row: dict) -> str:
    return (
        f"{row['model']}, batch {row['batch']}, {row['implementation']}: "
        f"{row['tokens/s']:,} tokens/s ({row['tokens per row']:,} per row), "
        f"memory limit {row['memory limit, tokens/s']:,}"
    )


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
    device, peers = hardware.choose_device(options.device), Peers(options.lecture, options.nanogpt)
    rows = []
    for model in options.model or NEW:
        for batch in options.batch or BATCHES:
            found, failures = compare(model, batch, device, options.seconds, peers)
            print("\n".join([*map(describe, found), *failures]), flush=True)
            rows += found
    if options.json:
        common.write("decode", rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
