"""`--profile`: a trace of a few steps in the run's folder, and the kernels that cost them most."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, schedule

WAIT = 6  # steps; then all kernels are loaded, and the CUDA graph is captured
WARM_UP = 1  # step, that the profiler itself needs
STEPS = 3
NEEDED = WAIT + WARM_UP + STEPS
COSTLIEST = 10


class Profiler:
    """A context; `step` ends each of its steps. Once there were enough, it reports."""

    def __init__(self, wanted: bool, folder: Path, device: torch.device):
        self.folder, self.on_card = folder, device.type == "cuda"
        self._profile, self._reported = None, False
        if wanted:
            self._profile = torch.profiler.profile(
                activities=[
                    ProfilerActivity.CPU,
                    *([ProfilerActivity.CUDA] if self.on_card else []),
                ],
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
                print(f"--profile takes {NEEDED} steps, and there were fewer")

    def step(self) -> None:
        if self._profile:
            self._profile.step()

    def _report(self, profile) -> None:
        if profile.step_num < NEEDED:
            return
        self._reported = True
        path = self.folder / "trace.json"
        profile.export_chrome_trace(str(path))
        costs = kernel_costs(profile.events(), self.on_card)
        whole = sum(microseconds for microseconds, _ in costs.values())
        print(f"{1e-3 * whole / STEPS:.2f} ms of kernels in a step; ui.perfetto.dev opens {path}")
        costliest = sorted(costs, key=costs.get, reverse=True)[:COSTLIEST]
        for name in costliest:
            microseconds, count = costs[name]
            print(
                f"{100 * microseconds / whole:5.1f}% {1e-3 * microseconds / STEPS:9.3f} ms "
                f"{count / STEPS:6.0f} x {name[:100]}"
            )


def kernel_costs(events, on_card: bool) -> dict[str, tuple[float, int]]:
    """Name -> microseconds and number of launches; on a CPU a kernel is an operation's own time."""
    costs: dict[str, tuple[float, int]] = {}
    device = torch.autograd.DeviceType.CUDA if on_card else torch.autograd.DeviceType.CPU
    for event in events:
        if event.device_type != device or event.name.startswith("ProfilerStep"):
            continue
        spent = event.self_device_time_total if on_card else event.self_cpu_time_total
        microseconds, count = costs.get(event.name, (0.0, 0))
        costs[event.name] = (microseconds + spent, count + 1)
    return costs
