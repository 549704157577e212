"""Compares the implementations of one case: created once, warmed up, timed in turn."""

import functools
import traceback
from typing import NamedTuple

import torch

from bench.baselines import Baseline, Maker
from bench.timer import Ceilings, Samples, Trial, spread, time_interleaved
from bench.workloads import timed

SECONDS_EACH = 0.12  # of timing, per implementation and pass; warm-up not included


class Failed(NamedTuple):
    """An implementation that raised. Text, because a traceback would keep its tensors alive."""

    reason: str  # one line
    details: str


class Comparison:
    """The implementations of one case on one device."""

    def __init__(self, case, makers: dict[str, Maker], device: torch.device, timer):
        self.case, self.makers, self.device, self.timer = case, makers, device, timer
        self.inputs = case.inputs(device)
        self.made: dict[str, Baseline | Failed] = {}

    def run(self, direction: str) -> dict[str, Samples | Failed]:
        """Time one pass of `timed.passes` of every implementation, interleaved."""
        trials: dict[str, Trial] = {}
        failed: dict[str, Failed] = {}
        for name, maker in self.makers.items():
            if name not in self.made:
                self.made[name] = attempt(maker)
            made = self.made[name]
            trial = made if isinstance(made, Failed) else attempt(self._trial, made, direction)
            if isinstance(trial, Failed):
                failed[name] = trial
            else:
                trials[name] = trial
        return failed | time_interleaved(trials, self.timer, SECONDS_EACH * len(trials))

    def _trial(self, baseline: Baseline, direction: str) -> Trial:
        """A trial of the pass that has run once without an error."""
        inputs = self.inputs
        if direction == timed.STEP:
            trial = Trial(baseline.function(*inputs))
            trial.call()
            return self._synchronised(trial)
        if baseline.writes_inputs:
            inputs = tuple(_copy(value) for value in inputs)
        function, options = baseline.function, self.case.keywords(self.device)
        weights = function.parameters() if isinstance(function, torch.nn.Module) else ()
        leaves = [value for value in (*inputs, *options.values(), *weights) if _has_gradient(value)]

        def forward():
            with baseline.context(), self.case.autocast(self.device):
                return function(*inputs, **options)

        def backward(outputs):
            with baseline.context():
                return torch.autograd.grad(outputs, leaves, gradients)

        outputs = forward()
        gradients = [  # of a scalar loss: 1, as in loss.backward()
            torch.randn_like(output) if output.dim() else torch.ones_like(output)
            for output in (outputs if isinstance(outputs, tuple) else (outputs,))
        ]
        backward(outputs)
        return self._synchronised(
            {
                "forward": Trial(forward),
                "backward": Trial(backward, before=forward),
                "both": Trial(lambda: backward(forward())),
            }[direction]
        )

    def _synchronised(self, trial: Trial) -> Trial:
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # so that an error is raised for this implementation
        return trial

    def peak_bytes(self, name: str, direction: str) -> int:
        """Peak memory of a pass in addition to its inputs, in bytes."""
        trial = self._trial(self.made[name], direction)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        trial.call()
        return torch.cuda.max_memory_allocated() - before


def row(case, direction: str, name: str, samples: Samples, ceilings: Ceilings | None) -> dict:
    """One row of the result file: the measurement of one implementation."""
    work = timed.work(case)[direction]
    median, p20, p80 = spread(samples.seconds)
    result = {
        "operation": case.operation,
        "shape": timed.shape(case),
        "precision": case.precision,
        "pass": direction,
        "implementation": name,
        "median_us": 1e6 * median,
        "p20_us": 1e6 * p20,
        "p80_us": 1e6 * p80,
        "rounds": len(samples.seconds),
        "host_us": 1e6 * samples.host,
        "gb_s": work.bytes / median / 1e9,
    }
    if work.flops:
        result["tflop_s"] = work.flops / median / 1e12
    if ceilings is not None:
        result["ceiling"] = ceilings.floor(*work) / median
    return {
        key: float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in result.items()
    }


def attempt(function, *arguments):
    """Call `function`; return its result, or `Failed` if it raises."""
    try:
        return function(*arguments)
    except _expected_errors() as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return Failed(reason, traceback.format_exc())


@functools.cache
def _expected_errors() -> tuple:
    """What PyTorch, torch.compile, Triton and Liger raise for something they do not support."""
    from triton.errors import TritonError

    return (
        RuntimeError,  # torch.OutOfMemoryError and the errors of torch.compile are among them
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
