"""Every operation and every whole step once, on a small grid with ragged edges.

The program that compute-sanitizer watches; it prints the names of the kernels that are ours.
"""

import torch

import kernels
from bench.cases import CASES, UPDATES, Case, Sizes, Update
from bench.ledger.compiled import record
from bench.prove.stages.repeat import names, once
from bench.steps import STEPS
from kernels.common import launch

RAGGED = Sizes("ragged", B=1, T=77, C=60, H=3, V=101)
SIZES = {"rows": 1, "block_size": 77, "n_embd": 60, "n_head": 3, "vocab_size": 101}  # of steps
WITH_DROPOUT = ("add_layer_norm", "attention", "attention_qkv", "feed_forward")
OURS = "our kernels:"


def main() -> None:
    device = torch.device("cuda")
    ops = kernels.load("triton", device)
    for case in cases():
        once(case, ops, device)()
    for step in STEPS:
        step.on(device, ops, **SIZES)
    torch.cuda.synchronize()
    architecture = launch.architecture(device)
    launched = [one.launch for case in (*cases(), *STEPS) for one in record(case, architecture)]
    print(OURS, *sorted({one.kernel.fn.__name__ for one in launched}))


def cases() -> list[Case | Update]:
    found: list[Case | Update] = [Update(name, RAGGED) for name in names(UPDATES)]
    for name in names(CASES):
        options = [{}, {"dropout_p": 0.2}] if name in WITH_DROPOUT else [{}]
        found += [Case(name, RAGGED, options=chosen) for chosen in options]
    return [*found, Case("feed_forward", RAGGED, route=launch.GEMM)]


if __name__ == "__main__":
    main()
