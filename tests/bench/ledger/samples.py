"""Kernels with known properties, and some shipped ones, compiled for the tests of the ledger.

`python -m tests.bench.ledger.samples FILE` writes their rows. It is a process of its own, because
tests run where kernels are interpreted and not compiled.
"""

import json
import sys
from pathlib import Path
from unittest import mock

import torch
import triton
import triton.language as tl

from bench.ledger import compiled
from bench.workloads.operations import CASES
from kernels.common.launch import launch, record

# architecture -> the samples compiled for it; (): all
SAMPLES = {"80": ("product",), "90": (), "100": ("product",)}
ROWS, LENGTH = 64, 1024  # a row of bf16 is 2 KiB: 16 bytes for each of 128 threads
M, N, K, DEPTH = 128, 64, 64, 512


@triton.jit
def _copy(x_ptr, y_ptr, row_stride, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * row_stride + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at))


@triton.jit
def _product(x_ptr, y_ptr, z_ptr, depth, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    x_ptrs, y_ptrs = x_ptr + m * depth + k[None, :], y_ptr + k[:, None] * N + n
    total = tl.zeros((M, N), tl.float32)
    for _ in range(0, depth, K):
        total = tl.dot(tl.load(x_ptrs), tl.load(y_ptrs), total, input_precision="ieee")
        x_ptrs += K
        y_ptrs += K * N
    tl.store(z_ptr + m * N + n, total)


def _meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def _calls() -> dict:
    x, y = _meta(ROWS, LENGTH), _meta(ROWS, LENGTH)
    # without the divisibility of an argument
    forgetful = triton.jit(_copy.fn, do_not_specialize=["row_stride"])

    def product(dtype=torch.bfloat16, **options):
        a, b, c = _meta(M, DEPTH, dtype=dtype), _meta(DEPTH, N, dtype=dtype), _meta(M, N)
        return _product, (a, b, c, DEPTH), dict(M=M, N=N, K=K, num_warps=4) | options

    return {
        "wide": (_copy, (x, y, LENGTH), dict(BLOCK=LENGTH)),
        "forgetful": (forgetful, (x, y, LENGTH), dict(BLOCK=LENGTH)),
        "product": product(num_stages=2),
        "fp32 product": product(dtype=torch.float32, M=16, N=16, K=16),
        "spilling": product(N=512, num_stages=2),  # 512 sums per thread
    }


def main(file: str) -> None:
    found, calls = {}, _calls()
    for architecture, names in SAMPLES.items():
        targets = compiled.architectures(architecture)
        for name in names or calls:
            kernel, arguments, options = calls[name]
            with record(targets[0]) as launches:
                launch(kernel, (ROWS,), *arguments, **options)
            recorded = [(name, target, launches[0]) for target in targets]
            (found[f"{name} {architecture}"],) = compiled.rows(recorded, architecture)
    cases = [case for case in CASES if case.operation == "cross_entropy"]
    few = {"CASES": cases, "UPDATES": (), "TOKENS": (), "STEPS": (), "PROCESSES": 1}
    with mock.patch.multiple(compiled, **few):
        found["shipped"] = compiled.collect(["90"], ["backward"])
    Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
