"""A captured step of a preset: its losses against PyTorch's, and where a replay's time goes."""

import gc
import tempfile
from pathlib import Path

import torch

from bench.prove.stages import Outcome, failed, parity, passed
from bench.training import Way, a_step, a_text, configuration
from gpt.training.step import Precision

GRAPHS = "CUDA graphs"
GRAPH_TESTS = ("tests/gpt", None, "-k", "graph")
PARTS = ("lecture", "gpt2", GRAPHS, "shakespeare-char")
OURS, PYTORCH = Way("triton", step="graph"), Way("torch")
STEPS = 20
BOUND = 0.01  # of the loss: random tokens have nothing to learn, and a wrong update shows at once
MOST_LINES = 12


def work(part: str, seconds: float) -> Outcome:
    return graph_tests(seconds) if part == GRAPHS else of_preset(part)


def graph_tests(seconds: float) -> Outcome:
    """The tests of steps, evaluation and decoding as CUDA graphs."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes"
        ended = parity.run(*GRAPH_TESTS, file=file, seconds=seconds)
        return parity.judge(parity.read(file), ended)


def of_preset(preset: str) -> Outcome:
    losses, step = followed(preset, OURS)
    rows = replay(preset, step)
    del step
    gc.collect()
    torch.cuda.empty_cache()
    expected, _ = followed(preset, PYTORCH)
    apart = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
    launches, busy = (sum(row[name] for row in rows) for name in ("launches", "microseconds"))
    says = (
        f"{STEPS} losses within {100 * apart:.2g}% of PyTorch's; a replay has {launches} nodes, "
        f"which take {busy / 1e3:.2f} ms"
    )
    if not apart <= BOUND:  # NaN is not either
        return failed(says, figures=rows)
    return passed(says, figures=rows, lines=[told(row) for row in rows[:MOST_LINES]])


def followed(preset: str, way: Way):
    """The losses of some steps without dropout, and the step."""
    device = torch.device("cuda")
    config = configuration(preset, dropout=0.0)
    text = torch.Generator(device).manual_seed(0)
    data = a_text(config.model.vocab_size, device, text)
    step, _ = a_step(config, way, data, Precision(device, torch.bfloat16), None)
    return [step(number).item() for number in range(STEPS)], step


def replay(preset: str, step) -> list[dict]:
    """A row for each kernel of one replay, the longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step(STEPS)
        torch.cuda.synchronize()
    events = [
        (event.name, event.time_range.elapsed_us())
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return rows(preset, events)


def rows(preset: str, events: list[tuple[str, float]]) -> list[dict]:
    found: dict[str, list[float]] = {}
    for name, microseconds in events:
        found.setdefault(kind(name), []).append(microseconds)
    busy = sum(microseconds for _, microseconds in events)
    return [
        {
            "preset": preset,
            "kernel": name,
            "launches": len(times),
            "microseconds": round(sum(times), 1),
            "share": round(sum(times) / busy, 4),
        }
        for name, times in sorted(found.items(), key=lambda item: -sum(item[1]))
    ]


def kind(name: str) -> str:
    """Our kernels by their names, all others by what they do."""
    if name.endswith("_kernel") and "::" not in name:
        return name
    if any(word in name for word in ("nvjet", "gemm", "cublas", "cutlass")):
        return "matrix products of cuBLAS"
    if name.startswith(("Memset", "Memcpy", "memcpy")):
        return "copies and fills"
    return "PyTorch's other kernels"


def told(row: dict) -> str:
    return (
        f"{row['preset']}: {row['kernel']}, {row['launches']} times, "
        f"{row['microseconds']:,.0f} µs, {100 * row['share']:.1f}%"
    )


def parts() -> dict[str, float]:
    return dict.fromkeys(PARTS, 1)
