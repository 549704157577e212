"""Same inputs, same bits: operations and whole training steps, 250 times beside a busy stream."""

from collections.abc import Callable

import torch

import kernels
from bench.cases import CASES, UPDATES, Case, Update
from bench.prove.stages import failed, passed
from bench.steps import STEPS, TrainingStep
from bench.workloads import OptimizerCase

RUNS = 250
RIVAL = 2048  # the other stream multiplies matrices of this size, some 20 us on an H200
RIVALS_PER_RUN = 4


def work(part: str, seconds: float) -> dict:
    device = torch.device("cuda")
    cases = cases_of(part)
    for case in cases:
        differing = differing_runs(once(case, kernels.load("triton", device), device), device)
        if differing:
            return failed(f"{differing} of {RUNS} runs differ from the first at {case}")
    return passed(f"{RUNS} equal runs at each of {len(cases)} cases")


def differing_runs(run: Callable[[], list[torch.Tensor]], device: torch.device) -> int:
    """How many of the runs differ from the first in a bit of a value or a gradient."""
    first = run()
    matrix = torch.randn(RIVAL, RIVAL, dtype=torch.bfloat16, device=device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    differing = torch.zeros((), dtype=torch.int64, device=device)
    for _ in range(RUNS - 1):
        with torch.cuda.stream(stream):
            for _ in range(RIVALS_PER_RUN):
                matrix @ matrix
        differs = [bits(a).ne(bits(b)).any() for a, b in zip(first, run(), strict=True)]
        differing += torch.stack(differs).any()
    return differing.item()


def once(case, ops: kernels.Ops, device) -> Callable[[], list[torch.Tensor]]:
    """All results of a case from the same random numbers each time, dropout's among them."""
    results = {TrainingStep: gradients, Update: updated}.get(type(case), values)(case, ops, device)

    def run():
        torch.manual_seed(0)
        return results()

    return run


def values(case: Case, ops: kernels.Ops, device) -> Callable[[], list[torch.Tensor]]:
    """Values and gradients."""

    def run():
        inputs = case.inputs(device)
        leaves = [one for one in inputs if isinstance(one, torch.Tensor) and one.requires_grad]
        outputs = case.call(ops, inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        upstream = [torch.randn(one.shape, dtype=one.dtype, device=device) for one in outputs]
        downstream = torch.autograd.grad(outputs, leaves, upstream)
        return [*(one.detach() for one in outputs), *downstream]

    return run


def updated(case: Update, ops: kernels.Ops, device) -> Callable[[], list[torch.Tensor]]:
    """The norm of the gradients, and the parameters after a step."""
    start = OptimizerCase(case.operation, case.sizes, n_layer=1, precision=case.precision)

    def run():
        parameters = start.inputs(device)
        optimizer = getattr(ops, case.operation)(parameters)
        norm = optimizer.clip_grad_norm(1.0)
        optimizer.step()
        return [norm, *(parameter.detach() for parameter in parameters)]

    return run


def gradients(case: TrainingStep, ops: kernels.Ops, device) -> Callable[[], list[torch.Tensor]]:
    """The loss and all gradients of a whole step."""
    step = case.step(device, ops)

    def run():
        loss, _ = step.backward(step.number)
        leaves = [*step.weights, *step.copies.values()]
        found = [leaf.grad for leaf in leaves if leaf.grad is not None]
        step.clear()
        return [loss, *found]

    return run


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bits as integers, so that NaN equals itself and -0 does not equal 0."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(integers[tensor.element_size()])


TRAINING = tuple(step for step in STEPS if isinstance(step, TrainingStep))


def cases_of(part: str, cases=(*CASES, *UPDATES, *TRAINING)) -> list:
    return [case for case in cases if part in (case.operation, str(case))]


def names(cases=(*CASES, *UPDATES, *TRAINING)) -> list[str]:
    """The operations of `cases` that Triton serves here, and whole steps by their names."""
    serving = kernels.serving(kernels.load("triton"))
    found = dict.fromkeys(
        str(case) if case in STEPS else case.operation
        for case in cases
        if case in STEPS or serving.get(case.operation) == "triton"
    )
    return list(found)


def parts() -> dict[str, float]:
    return dict.fromkeys(names(), 1)
