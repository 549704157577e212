"""`--profile`: a trace of a few steps in the run's folder, and a table of the costliest kernels."""

import heapq
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, schedule

WAIT = 6  # steps until all kernels are loaded and the CUDA graph is captured
WARM_UP = 1  # a step that the profiler itself needs
STEPS = 3  # that are recorded
NEEDED = WAIT + WARM_UP + STEPS
COSTLIEST = 10  # kernels in the table


class Profiler:
    """A context in which `step` ends every training step. After NEEDED of them it reports."""

    def __init__(self, enabled: bool, folder: Path, device: torch.device):
        self.folder, self.on_gpu = folder, device.type == "cuda"
        self._profile, self._reported = None, False
        if enabled:
            activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
            self._profile = torch.profiler.profile(
                activities=activities if self.on_gpu else activities[:1],
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
        device = torch.autograd.DeviceType.CUDA if self.on_gpu else torch.autograd.DeviceType.CPU
        rows = [  # on a CPU a kernel is an operation without those that it calls
            (event.self_device_time_total if self.on_gpu else event.self_cpu_time_total, event)
            for event in profile.key_averages()
            if event.device_type == device and not event.key.startswith("ProfilerStep")
        ]
        total = sum(microseconds for microseconds, _ in rows)
        print(f"{1e-3 * total / STEPS:.2f} ms of kernels per step; open {path} in ui.perfetto.dev")
        for microseconds, event in heapq.nlargest(COSTLIEST, rows, key=lambda row: row[0]):
            print(
                f"{100 * microseconds / total:5.1f}% {1e-3 * microseconds / STEPS:9.3f} ms "
                f"{event.count / STEPS:6.0f} x {event.key[:100]}"
            )
