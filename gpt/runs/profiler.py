"""`--profile`: a trace of a few steps in the run's folder, and a table of what costs most."""

from pathlib import Path

import torch
from torch.profiler import schedule

WAIT = 6  # steps until all kernels are loaded and the CUDA graph is captured
WARM_UP = 1  # a step that the profiler itself needs
STEPS = 3  # that are recorded
NEEDED = WAIT + WARM_UP + STEPS
COSTLIEST = 10  # operations in the table


class Profiler:
    """A context in which `step` ends every training step. After NEEDED of them it reports."""

    def __init__(self, enabled: bool, folder: Path, device: torch.device):
        self.folder, self.on_gpu = folder, device.type == "cuda"
        self._profile, self._reported = None, False
        if enabled:  # of the CPU and, if there is one, the GPU
            self._profile = torch.profiler.profile(
                schedule=schedule(wait=WAIT, warmup=WARM_UP, active=STEPS, repeat=1),
                on_trace_ready=self._report,
            )

    def __enter__(self):
        if self._profile:
            self._profile.start()
        return self

    def __exit__(self, *error) -> None:
        if self._profile:
            self._profile.stop()
            if not self._reported:
                print(f"--profile needs {NEEDED} steps, but the run had fewer")

    def step(self) -> None:
        if self._profile:
            self._profile.step()

    def _report(self, profile) -> None:
        if profile.step_num < NEEDED:
            return
        self._reported = True
        path = self.folder / "trace.json"
        profile.export_chrome_trace(str(path))
        order = f"self_{'cuda' if self.on_gpu else 'cpu'}_time_total"
        print(profile.key_averages().table(sort_by=order, row_limit=COSTLIEST))
        print(f"the table is of {STEPS} steps; open {path} in ui.perfetto.dev")
