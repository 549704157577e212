"""`--profile`: a trace of a few steps in the run's folder, and a table of what costs most."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

WAIT = 6  # steps until all kernels are loaded and the CUDA graph is captured
WARM_UP = 1  # a step that the profiler itself needs
STEPS = 3  # that are recorded
NEEDED = WAIT + WARM_UP + STEPS
COSTLIEST = 10  # operations in the table


@contextlib.contextmanager
def profiler(enabled: bool, folder: Path, device: torch.device) -> Iterator[Callable[[], None]]:
    """A context with a function that ends every training step. After NEEDED of them it reports."""
    if not enabled:
        yield lambda: None
        return

    def report(profile) -> None:
        if profile.step_num < NEEDED:
            return
        path = folder / "trace.json"
        profile.export_chrome_trace(str(path))
        order = f"self_{'cuda' if device.type == 'cuda' else 'cpu'}_time_total"
        print(profile.key_averages().table(sort_by=order, row_limit=COSTLIEST))
        print(f"the table is of {STEPS} steps; open {path} in ui.perfetto.dev")

    steps = torch.profiler.schedule(wait=WAIT, warmup=WARM_UP, active=STEPS, repeat=1)
    with torch.profiler.profile(schedule=steps, on_trace_ready=report) as profile:
        yield profile.step
    if profile.step_num < NEEDED:
        print(f"--profile needs {NEEDED} steps, but the run had fewer")
