"""One case, all its rivals: made once, warmed up, timed in turns, and told as rows of figures."""

import functools
import traceback
from typing import NamedTuple

import torch

from bench import workloads
from bench.baselines import Maker, Rival
from bench.timer import Ceilings, Samples, Trial, in_turns, spread

SECONDS_PER_RIVAL = 0.12  # of timing in turns, per rival and pass; warming up comes before
NAMED_KERNELS = 4  # of a rival, the longest first
NAME_LENGTH = 120  # templates make names of a page


class Failed(NamedTuple):
    """A rival that could not be timed. Text, because a traceback would keep its tensors alive."""

    reason: str  # one line
    details: str


class Race:
    """The rivals of one case on one device."""

    def __init__(self, case, makers: dict[str, Maker], device: torch.device, watch):
        self.case, self.makers, self.device, self.watch = case, makers, device, watch
        self.inputs = case.inputs(device)
        self.rivals: dict[str, Rival | Failed] = {}

    def run(self, direction: str) -> dict[str, Samples | Failed]:
        """Time one pass of `timed.passes` of every rival, in turns."""
        trials: dict[str, Trial] = {}
        failed: dict[str, Failed] = {}
        for name in self.makers:
            rival = self._rival(name)
            trial = rival if isinstance(rival, Failed) else attempt(self._trial, rival, direction)
            if isinstance(trial, Failed):
                failed[name] = trial
            else:
                trials[name] = trial
        return failed | in_turns(trials, self.watch, SECONDS_PER_RIVAL * len(trials))

    def _rival(self, name: str) -> Rival | Failed:
        if name not in self.rivals:
            self.rivals[name] = attempt(self.makers[name])
        return self.rivals[name]

    def _trial(self, rival: Rival, direction: str) -> Trial:
        """The pass as a trial that has been called once, so that it is known to work."""
        inputs = self.inputs
        if direction == workloads.STEP:
            trial = Trial(rival.function(*inputs))
            trial.call()
            return self._awaited(trial)
        if rival.own_inputs:
            inputs = tuple(_copy(value) for value in inputs)
        weights = rival.function.parameters() if isinstance(rival.function, torch.nn.Module) else ()
        options = self.case.keywords(self.device)
        leaves = [value for value in (*inputs, *options.values(), *weights) if _has_gradient(value)]

        def forward():
            with rival.around(), self.case.around(self.device):
                return rival.function(*inputs, **options)

        def backward(outputs):
            with rival.around():
                return torch.autograd.grad(outputs, leaves, gradients)

        outputs = forward()
        gradients = [  # a loss's is 1, as loss.backward() has it
            torch.randn_like(output) if output.dim() else torch.ones_like(output)
            for output in _tuple(outputs)
        ]
        trial = {
            "forward": Trial(forward),
            "backward": Trial(backward, before=forward),
            "both": Trial(lambda: backward(forward())),
        }[direction]
        backward(outputs)
        return self._awaited(trial)

    def _awaited(self, trial: Trial) -> Trial:
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # here, so that what goes wrong is told of this rival
        return trial

    def peak_bytes(self, name: str, direction: str) -> int:
        """Memory that a pass takes on top of the inputs, at the highest."""
        trial = self._trial(self.rivals[name], direction)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        trial.call()
        return torch.cuda.max_memory_allocated() - before

    def kernels(self, name: str, direction: str) -> list[str]:
        """The kernels of a pass, the longest first, as the profiler names them."""
        trial = self._trial(self.rivals[name], direction)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            trial.call()
            torch.cuda.synchronize()
        seconds: dict[str, float] = {}
        for event in profile.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                seconds[event.name] = seconds.get(event.name, 0) + event.time_range.elapsed_us()
        longest = sorted(seconds, key=seconds.get, reverse=True)[:NAMED_KERNELS]
        return [name[:NAME_LENGTH] for name in longest]


def row(case, direction: str, rival: str, samples: Samples, ceilings: Ceilings | None) -> dict:
    """One row of figures, as it stands in the result file."""
    work = workloads.work(case)[direction]
    median, p20, p80 = spread(samples.seconds)
    figures = {
        "operation": case.operation,
        "shape": workloads.shape(case),
        "precision": case.precision,
        "pass": direction,
        "rival": rival,
        "median_us": 1e6 * median,
        "p20_us": 1e6 * p20,
        "p80_us": 1e6 * p80,
        "rounds": len(samples.seconds),
        "host_us": 1e6 * samples.host,
        "gb_s": work.bytes / median / 1e9,
    }
    if work.flops:
        figures["tflop_s"] = work.flops / median / 1e12
    if ceilings is not None:
        figures["ceiling"] = ceilings.floor(*work) / median
    return {key: _short(value) for key, value in figures.items()}


def _short(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value


def attempt(make, *arguments):
    """What `make` returns, or `Failed`: a rival that fails is reported and the others go on."""
    try:
        return make(*arguments)
    except _failures() as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return Failed(reason, traceback.format_exc())


@functools.cache
def _failures() -> tuple:
    """What PyTorch, its compiler, Triton and Liger raise when they cannot do as asked."""
    from triton.errors import TritonError

    return (
        RuntimeError,  # PyTorch's own, out of memory and torch.compile's among them
        ValueError,
        TypeError,
        ArithmeticError,
        AssertionError,
        ImportError,
        AttributeError,
        TritonError,
    )


def _copy(value):
    return value.detach().clone().requires_grad_() if _has_gradient(value) else value


def _has_gradient(value) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _tuple(outputs) -> tuple:
    return outputs if isinstance(outputs, tuple) else (outputs,)
