"""Every operation once, forward and backward, on a small grid with ragged edges.

The program that compute-sanitizer watches; it prints the names of the kernels that are ours.
"""

import torch

import kernels
from bench.cases import CASES, UPDATES, Case, Sizes, Update
from bench.compiled import record
from bench.stages.repeat import once, operations
from kernels import launch

RAGGED = Sizes("ragged", B=1, T=77, C=60, H=3, V=101)
WITH_DROPOUT = ("add_layer_norm", "attention", "attention_qkv", "feed_forward")
OURS = "our kernels:"


def main() -> None:
    device = torch.device("cuda")
    ops = kernels.load("triton", device)
    for case in cases():
        once(case, ops, device)
    torch.cuda.synchronize()
    architecture = launch.architecture(device)
    launched = [one.launch for case in cases() for one in record(case, architecture)]
    print(OURS, *sorted({one.kernel.fn.__name__ for one in launched}))


def cases() -> list[Case | Update]:
    found: list[Case | Update] = [Update(name, RAGGED) for name in operations(UPDATES)]
    for name in operations(CASES):
        options = [{}, {"dropout_p": 0.2}] if name in WITH_DROPOUT else [{}]
        found += [Case(name, RAGGED, options=chosen) for chosen in options]
    return [*found, Case("feed_forward", RAGGED, route=launch.GEMM)]


if __name__ == "__main__":
    main()
