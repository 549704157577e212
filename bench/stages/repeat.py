"""Same inputs, same bits: every operation 250 times, forward and backward, beside a busy stream."""

import torch

import kernels
from bench.cases import CASES, Case
from bench.stages import failed, passed, work_through

RUNS = 250
RIVAL = 2048  # the other stream multiplies matrices of this size, some 20 us on an H200
RIVALS_PER_RUN = 4


def work(operation: str, seconds: float) -> dict:
    cases = [case for case in CASES if case.operation == operation]
    for case in cases:
        differing = differing_runs(case)
        if differing:
            return failed(f"{differing} of {RUNS} runs differ from the first at {case}")
    return passed(f"{RUNS} equal runs at each of {len(cases)} cases")


def differing_runs(case: Case) -> int:
    """How many of the runs differ from the first in a bit of a value or a gradient."""
    device = torch.device("cuda")
    ops = kernels.load("triton", device)
    torch.manual_seed(0)
    inputs = case.inputs(device)
    leaves = [one for one in inputs if isinstance(one, torch.Tensor) and one.requires_grad]
    first = _run(case, ops, inputs, leaves)
    matrix = torch.randn(RIVAL, RIVAL, dtype=torch.bfloat16, device=device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    differing = torch.zeros((), dtype=torch.int64, device=device)
    for _ in range(RUNS - 1):
        with torch.cuda.stream(stream):
            for _ in range(RIVALS_PER_RUN):
                matrix @ matrix
        again = _run(case, ops, inputs, leaves)
        differs = [bits(a).ne(bits(b)).any() for a, b in zip(first, again, strict=True)]
        differing += torch.stack(differs).any()
    return differing.item()


def _run(case: Case, ops, inputs, leaves) -> list[torch.Tensor]:
    """Values and gradients, the same coins each time."""
    torch.manual_seed(1)
    outputs = case.call(ops, inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    gradients = [torch.randn_like(output) for output in outputs]
    return [*(one.detach() for one in outputs), *torch.autograd.grad(outputs, leaves, gradients)]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bits as integers, so that NaN equals itself and -0 does not equal 0."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(integers[tensor.element_size()])


def operations() -> list[str]:
    """The operations of `CASES` that Triton serves here."""
    serving = kernels.serving(kernels.load("triton"))
    names = dict.fromkeys(case.operation for case in CASES)
    return [name for name in names if serving.get(name) == "triton"]


if __name__ == "__main__":
    work_through(dict.fromkeys(operations(), 1), work)
