"""Text as fast as it comes: tokens per second of `generate`, ours and its peers', and the limit.

    python -m bench.recipes.decode --lecture PATH/gpt.py --nanogpt PATH_OF_A_CHECKOUT --json FILE

Each way speaks from one token on, drawing from the model's own distribution: 1,000 tokens with the
lecture's model, 256 with GPT-2's. Weights are random. Peers run as their files have them, without
dropout. What counts is the time after the first token, which is told apart.

A way that has not made all tokens after --seconds is stopped, and its row says how many it has.
One that computes the whole context for each token is faster as long as the context is short, so
its figure is then too high. The lecture's crop moves with every token; "slide 64" moves it by 64
tokens at a time, as `sample.py --slide 64` does.

The limit is the memory's: every weight and what is kept of the context, read once for a token of
each row, at the rate of a copy in the same run (bytes read plus written).
"""

import argparse
import contextlib
import gc
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import torch

from bench import results_file
from bench.recipes.decoders import Peers, Speaker, Way, sizes, speaker, ways, why_not
from bench.recipes.quickstart import machine
from bench.timer import Trial, in_turns, spread, stopwatch
from gpt import hardware
from gpt.config.model import ModelConfig
from gpt.generation.generate import READ_EVERY

BATCHES = (1, 8, 64)
NEW = {"lecture": 1000, "gpt2": 256}  # tokens: far past the lecture's block, and within GPT-2's
HELD_AGAINST = {"lecture": "lecture", "gpt2": "nanogpt"}
RUNS = 3  # at most, as far as the seconds go
COPIED = 2**28  # bytes


class TimeOver(Exception):
    """Raised into a speaker that is to stop."""


def timed(speak: Speaker, tokens: torch.Tensor, new: int, seconds: float) -> dict:
    """One run: tokens that each row has got, seconds until the first and after it."""
    made, first, last = 0, 0.0, 0.0
    began = time.perf_counter()

    def tick(count: int) -> None:
        nonlocal made, first, last
        last = time.perf_counter() - began
        first, made = first or last, made + count
        if last > seconds and made > 1:
            raise TimeOver

    with contextlib.suppress(TimeOver):
        speak(tokens, new, tick)
    return {"made": made, "first": first, "seconds": last - first}


def measure(model: str, batch: int, way: Way, device, seconds: float, peers: Peers, copy: float):
    """The row of figures of one way; `copy` is the memory's rate in bytes per second."""
    gc.collect()
    config = sizes(model)
    speak = speaker(config, way, device, peers)
    tokens = torch.zeros((batch, 1), dtype=torch.int64, device=device)
    timed(speak, tokens, 2 * READ_EVERY, seconds / 4)  # loads, compiles, allocates
    runs = [timed(speak, tokens, NEW[model], seconds)]
    while len(runs) < RUNS and sum(run["seconds"] for run in runs) < seconds / 2:
        runs.append(timed(speak, tokens, NEW[model], seconds))
    made = min(run["made"] for run in runs)
    rate = statistics.median(batch * (run["made"] - 1) / run["seconds"] for run in runs)
    first = statistics.median(run["first"] for run in runs)
    return {
        "model": model,
        "batch": batch,
        "who": str(way),
        "tokens per row": made,
        "runs": len(runs),
        "first, ms": _short(1e3 * first),
        "tokens/s": _short(rate),
        "limit": _short(batch * copy / bytes_per_token(config, batch, way, made)),
    }


def bytes_per_token(config: ModelConfig, batch: int, way: Way, made: int) -> float:
    """What a token of each row reads at least: the matrices, keys and values of a mean context."""
    C, L, T, V = config.n_embd, config.n_layer, config.block_size, config.vocab_size
    item = getattr(torch, way.dtype).itemsize
    H, Hkv, _ = config.head_counts
    kept = 2 * C * Hkv // H  # keys and values of a token and layer
    matrices = (10 * C + kept) * L * C + V * C
    most = min(config.window or T, T)
    context = statistics.mean(min(length, most) for length in range(1, made + 1))
    return matrices * (1 if way.int8 else item) + batch * context * L * kept * item


def copy_rate(device: torch.device) -> float:
    """Bytes per second, read plus written, of a copy that no cache can hold."""
    source = torch.randn(COPIED // 4, device=device)
    target = torch.empty_like(source)
    copy = {"copy": Trial(lambda: target.copy_(source))}
    return 2 * COPIED / spread(in_turns(copy, stopwatch(device), 0.3)["copy"].seconds).median


def _short(value: float) -> float:
    return round(value) if value >= 100 else float(f"{value:.3g}")


def told(row: dict) -> str:
    return (
        f"{row['model']}, batch {row['batch']}, {row['who']}: {row['tokens/s']:,} tokens/s "
        f"({row['tokens per row']:,} per row), limit {row['limit']:,}"
    )


def compared(rows: list[dict]) -> list[dict]:
    """The rows in order, each with its speed against that of the peer of its model and batch."""
    peers = {
        (row["model"], row["batch"]): row["tokens/s"]
        for row in rows
        if row["who"].startswith(HELD_AGAINST[row["model"]])
    }
    rows = sorted(rows, key=lambda row: (list(NEW).index(row["model"]), row["batch"]))
    return [row | {"times": _times(row, peers)} for row in rows]


def _times(row: dict, peers: dict) -> str:
    peer = peers.get((row["model"], row["batch"]))
    return f"{row['tokens/s'] / peer:.1f}" if peer else ""


def save(path: Path, rows: list[dict]) -> None:
    """Write the rows beside those of the same machine and commit that are there."""
    state = {"machine": machine(), "commit": results_file.commit()}
    if path.exists():
        there = results_file.read(path)
        if {key: there[key] for key in state} == state:
            again = [_key(row) for row in rows]
            rows = [row for row in there["rows"] if _key(row) not in again] + rows
    head = {"schema": results_file.SCHEMA, "table": "decode", "date": date.today().isoformat()}
    results_file.write(path, {**head, **state, "rows": compared(rows)})


def _key(row: dict) -> tuple:
    return row["model"], row["batch"], row["who"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", choices=NEW, action="append", help="all of them, unless told")
    add("--batch", type=int, action="append", help=f"{BATCHES}, unless told")
    add("--who", action="append", help="only those whose name begins so")
    add("--lecture", type=Path, help="the lecture's gpt.py")
    add("--nanogpt", type=Path, help="a checkout of nanoGPT")
    add("--device", default="auto")
    add("--seconds", type=float, default=20.0, help="of timing, per way")
    add("--json", type=Path, help="where to write the figures, beside those that are there")
    options = parser.parse_args(arguments)
    device, peers = hardware.choose_device(options.device), Peers(options.lecture, options.nanogpt)
    copy, rows = copy_rate(device), []
    for model in options.model or NEW:
        for batch in options.batch or BATCHES:
            for way in ways(model, device):
                reason = why_not(way, device, peers)
                if options.who and not str(way).startswith(tuple(options.who)):
                    continue
                if reason:
                    print(f"{model}, batch {batch}, {way}: {reason}")
                    continue
                rows.append(measure(model, batch, way, device, options.seconds, peers, copy))
                print(told(rows[-1]), flush=True)
    if options.json:
        save(options.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
