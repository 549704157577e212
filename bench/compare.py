"""Compares the implementations of one case: created once, warmed up, timed in turn."""

import copy
import gc
from typing import NamedTuple

import torch

from bench.baselines import Baseline, Maker
from bench.results import KEY
from bench.timer import Ceilings, Samples, Trial, spread, time_in_turn
from bench.workloads import timed
from gpt.hardware import synchronise

SECONDS_EACH = 0.08  # of timing, per implementation and pass; warm-up not included


class Failed(NamedTuple):
    """An implementation that raised. Text, because a traceback would keep its tensors alive."""

    reason: str  # one line


class Comparison:
    """The implementations of one case on one device. makers: a text is why one is missing."""

    def __init__(self, case, makers: dict[str, Maker | str], device: torch.device, timer):
        self.case, self.makers, self.device, self.timer = case, makers, device, timer
        gc.collect()  # the tensors of the last comparison
        torch.cuda.empty_cache()
        torch.manual_seed(0)
        self.inputs = case.inputs(device)
        self.made: dict[str, Baseline] = {}

    def run(self, direction: str) -> dict[str, Samples | Failed]:
        """Time one pass of `timed.passes` of every implementation, interleaved."""
        names = (name for name, maker in self.makers.items() if not isinstance(maker, str))
        found = {name: attempt(self.trial, name, direction) for name in names}
        for name, one in found.items():
            if isinstance(one, Failed):
                print(f"{self.case}, {direction}, {name}: {one.reason}", flush=True)
        synchronise(self.device)  # raises if one of them broke the CUDA context
        trials = {name: one for name, one in found.items() if isinstance(one, Trial)}
        return found | time_in_turn(trials, self.timer, SECONDS_EACH * len(trials))

    def trial(self, name: str, direction: str) -> Trial:
        """A trial of the pass that has run once without an error."""
        if name not in self.made:
            self.made[name] = self.makers[name]()
        function, context, writes_inputs = self.made[name]
        if direction == timed.STEP:
            step = function(*self.inputs)
            step()
            synchronise(self.device)  # so that an error is raised for this implementation
            return Trial(step)
        inputs = copy.deepcopy(self.inputs) if writes_inputs else self.inputs
        options = self.case.keywords(self.device)
        operands = (*inputs, *options.values())
        leaves = [one for one in operands if getattr(one, "requires_grad", False)]

        def forward():
            with context(), self.case.autocast(self.device):
                return function(*inputs, **options)

        def backward(outputs):
            with context():
                return torch.autograd.grad(outputs, leaves, gradients)

        outputs = forward()
        if direction == "forward":
            synchronise(self.device)
            return Trial(forward)
        gradients = [  # of a scalar loss: 1, as in loss.backward()
            torch.randn_like(output) if output.dim() else torch.ones_like(output)
            for output in (outputs if isinstance(outputs, tuple) else (outputs,))
        ]
        backward(outputs)
        synchronise(self.device)
        if direction == "backward":
            return Trial(backward, before=lambda: (forward(),))
        return Trial(lambda: backward(forward()))


def row(case, direction: str, name: str, samples: Samples, ceilings: Ceilings | None) -> dict:
    """One row of the result file: the measurement of one implementation."""
    work = timed.work(case)[direction]
    median, p20, p80 = spread(samples.seconds)
    place = (case.operation, timed.shape(case), case.precision, direction, name)
    result = dict(zip(KEY, place, strict=True)) | {
        "median_us": 1e6 * median,
        "p20_us": 1e6 * p20,
        "p80_us": 1e6 * p80,
        "rounds": len(samples.seconds),
        "host_us": 1e6 * samples.host,
        "gb_s": work.bytes / median / 1e9,
    }
    if work.flops:
        result["tflop_s"] = work.flops / median / 1e12
    if ceilings is not None:  # the fewest seconds that any kernel needs for this work
        bandwidth, flops = ceilings
        result["ceiling"] = max(work.bytes / bandwidth, work.flops / flops) / median
    return {
        key: float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in result.items()
    }


def attempt(function, *arguments):
    """Call `function`; return its result, or `Failed` if it raises."""
    try:
        return function(*arguments)
    except Exception as error:  # compilers and peers have classes of their own
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return Failed(reason)
