"""Same inputs, same bits: every operation 250 times, forward and backward, beside a busy stream."""

import torch

import kernels
from bench.cases import CASES, UPDATES, Case, Update
from bench.stages import failed, passed, work_through
from bench.timed import OptimizerCase

RUNS = 250
RIVAL = 2048  # the other stream multiplies matrices of this size, some 20 us on an H200
RIVALS_PER_RUN = 4


def work(operation: str, seconds: float) -> dict:
    device = torch.device("cuda")
    cases = cases_of(operation)
    for case in cases:
        differing = differing_runs(case, kernels.load("triton", device), device)
        if differing:
            return failed(f"{differing} of {RUNS} runs differ from the first at {case}")
    return passed(f"{RUNS} equal runs at each of {len(cases)} cases")


def differing_runs(case: Case | Update, ops: kernels.Ops, device: torch.device) -> int:
    """How many of the runs differ from the first in a bit of a value or a gradient."""
    first = once(case, ops, device)
    matrix = torch.randn(RIVAL, RIVAL, dtype=torch.bfloat16, device=device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    differing = torch.zeros((), dtype=torch.int64, device=device)
    for _ in range(RUNS - 1):
        with torch.cuda.stream(stream):
            for _ in range(RIVALS_PER_RUN):
                matrix @ matrix
        again = once(case, ops, device)
        differs = [bits(a).ne(bits(b)).any() for a, b in zip(first, again, strict=True)]
        differing += torch.stack(differs).any()
    return differing.item()


def once(case: Case | Update, ops: kernels.Ops, device) -> list[torch.Tensor]:
    """All results of a case from the same random numbers each time, dropout's among them."""
    torch.manual_seed(0)
    return (values if isinstance(case, Case) else updated)(case, ops, device)


def values(case: Case, ops: kernels.Ops, device) -> list[torch.Tensor]:
    """Values and gradients."""
    inputs = case.inputs(device)
    leaves = [one for one in inputs if isinstance(one, torch.Tensor) and one.requires_grad]
    outputs = case.call(ops, inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    gradients = [torch.randn(one.shape, dtype=one.dtype, device=device) for one in outputs]
    return [*(one.detach() for one in outputs), *torch.autograd.grad(outputs, leaves, gradients)]


def updated(case: Update, ops: kernels.Ops, device) -> list[torch.Tensor]:
    """The norm of the gradients, and the parameters after a step."""
    start = OptimizerCase(case.operation, case.sizes, n_layer=1, precision=case.precision)
    parameters = start.inputs(device)
    optimizer = getattr(ops, case.operation)(parameters)
    norm = optimizer.clip_grad_norm(1.0)
    optimizer.step()
    return [norm, *(parameter.detach() for parameter in parameters)]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bits as integers, so that NaN equals itself and -0 does not equal 0."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(integers[tensor.element_size()])


def cases_of(operation: str) -> list[Case | Update]:
    return [case for case in (*CASES, *UPDATES) if case.operation == operation]


def operations(cases=(*CASES, *UPDATES)) -> list[str]:
    """The operations of `cases` that Triton serves here."""
    serving = kernels.serving(kernels.load("triton"))
    names = dict.fromkeys(case.operation for case in cases)
    return [name for name in names if serving.get(name) == "triton"]


if __name__ == "__main__":
    work_through(dict.fromkeys(operations(), 1), work)
