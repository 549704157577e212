"""Every operation once, forward and backward, on a small grid with ragged edges.

The program that compute-sanitizer watches; it prints the names of the kernels that are ours.
"""

import torch

import kernels
from bench.cases import Case, Sizes
from bench.compiled import record
from bench.stages.repeat import operations
from kernels import launch

RAGGED = Sizes("ragged", B=1, T=77, C=60, H=3, V=101)
WITH_DROPOUT = ("add_layer_norm", "attention", "attention_qkv", "feed_forward")
OURS = "our kernels:"


def main() -> None:
    device = torch.device("cuda")
    ops = kernels.load("triton", device)
    for operation in operations():
        call(Case(operation, RAGGED), ops, device)
        if operation in WITH_DROPOUT:
            call(Case(operation, RAGGED, options={"dropout_p": 0.2}), ops, device)
    torch.cuda.synchronize()
    print(OURS, *sorted(names(launch.architecture(device))))


def call(case: Case, ops, device) -> None:
    outputs = case.call(ops, case.inputs(device))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.backward(outputs, [torch.randn_like(output) for output in outputs])


def names(architecture: int) -> set[str]:
    """The functions that `main` has launched."""
    cases = [Case(operation, RAGGED) for operation in operations()]
    launched = [one.launch for case in cases for one in record(case, architecture)]
    return {one.kernel.fn.__name__ for one in launched}


if __name__ == "__main__":
    main()
