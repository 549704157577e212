"""Captured training steps: their losses against PyTorch's, and the time of each kernel."""

import gc

import torch

from bench.prove.stage import Outcome, failed, passed
from bench.prove.stages import parity
from bench.training import Variant, configuration, make_step, random_data
from gpt.training.precision import Precision

GRAPHS = "CUDA graphs"
PARTS = ("lecture", "gpt2", GRAPHS, "shakespeare-char")
OURS, PYTORCH = Variant("triton", step="graph"), Variant("torch")
CUBLAS, OTHERS = "matrix products of cuBLAS", "PyTorch's other kernels"
STEPS = 20
BOUND = 0.01  # of the loss: random tokens cannot be learned, so a wrong update shows at once


def work(part: str, seconds: float) -> Outcome:
    if part == GRAPHS:  # of steps, evaluation and decoding
        return parity.work("tests/gpt/training tests/gpt/generation -k graph", seconds)
    losses, step = train(part, OURS)
    events = profiled(step)
    print(part, *events, sep="\n")  # each launch, in the log
    rows = kernel_rows(part, events)
    del step
    gc.collect()
    torch.cuda.empty_cache()
    expected, _ = train(part, PYTORCH)
    difference = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
    launches = sum(row["launches"] for row in rows)
    microseconds = sum(row["microseconds"] for row in rows)
    message = (
        f"{STEPS} losses within {100 * difference:.2g}% of PyTorch's; a replay has {launches} "
        f"nodes, which take {microseconds / 1e3:.2f} ms"
    )
    if not difference <= BOUND:  # fails for NaN too
        return failed(message, figures=rows)
    line = "{preset}: {kernel}, {launches} launches, {microseconds:,.0f} µs, {share:.1%}"
    return passed(message, figures=rows, lines=[line.format(**row) for row in rows])


def train(preset: str, variant: Variant):
    """The losses of `STEPS` steps without dropout, and the step."""
    device = torch.device("cuda")
    config = configuration(preset, dropout=0.0)
    torch.manual_seed(0)
    data = random_data(config.model.vocab_size, device)
    step, _ = make_step(config, variant, data, Precision(device, torch.bfloat16))
    return [step(number).item() for number in range(STEPS)], step


def profiled(step) -> list[tuple[str, float]]:
    """(kernel, microseconds) of each launch of a step on the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step(STEPS)
        torch.cuda.synchronize()
    return [
        (event.name, event.time_range.elapsed_us())
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]


def kernel_rows(preset: str, events: list[tuple[str, float]]) -> list[dict]:
    """One row per kind of kernel, longest first. events: the result of `profiled`."""
    times: dict[str, list[float]] = {}
    for name, microseconds in events:
        times.setdefault(kind(name), []).append(microseconds)
    total = sum(microseconds for _, microseconds in events)
    return [
        {
            "preset": preset,
            "kernel": name,
            "launches": len(of_kind),
            "microseconds": round(sum(of_kind), 1),
            "share": round(sum(of_kind) / total, 4),
        }
        for name, of_kind in sorted(times.items(), key=lambda item: -sum(item[1]))
    ]


def kind(name: str) -> str:
    """The name of one of our kernels, or what another kernel does."""
    if name.endswith("_kernel") and "::" not in name:
        return name
    if any(word in name for word in ("nvjet", "gemm", "cublas", "cutlass")):
        return CUBLAS
    if name.startswith(("Memset", "Memcpy", "memcpy")):
        return "copies and fills"
    return OTHERS
