"""Kernels with known properties, compiled for the tests of the ledger.

`python -m tests.bench.ledger.samples FILE` writes their rows. It is a process of its own, because
tests run where kernels are interpreted and not compiled.
"""

import json
import sys
from pathlib import Path

import torch
import triton
import triton.language as tl

from bench.ledger import compiled
from kernels.common.launch import launch, record

SAMPLES = {
    "80": ("product", "deep product"),
    "90": (),  # all
    "100": ("product",),
}
ROWS, LENGTH = 64, 1024  # a row of bf16 is 2 KiB: 16 bytes for each of 128 threads
M, N, K, DEPTH = 128, 64, 64, 512


@triton.jit
def _copy(x_ptr, y_ptr, row_stride, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * row_stride + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at))


_copy_forgetful = triton.jit(_copy.fn, do_not_specialize=["row_stride"])


@triton.jit
def _sum(x_ptr, y_ptr, row_stride, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * row_stride + tl.arange(0, BLOCK)
    tl.atomic_add(y_ptr, tl.sum(tl.load(x_ptr + at).to(tl.float32), 0))


@triton.jit
def _product(x_ptr, y_ptr, z_ptr, depth, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, depth, K):
        x = tl.load(x_ptr + m * depth + start + k[None, :])
        y = tl.load(y_ptr + (start + k[:, None]) * N + n)
        total = tl.dot(x, y, total, input_precision="ieee")
    tl.store(z_ptr + m * N + n, total)


def _meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def _calls() -> dict:
    x, y, total = _meta(ROWS, LENGTH), _meta(ROWS, LENGTH), _meta(1, dtype=torch.float32)
    shifted = _meta(ROWS * LENGTH + 1)[1:].view(ROWS, LENGTH)
    ragged = _meta(ROWS, LENGTH + 1)

    def product(dtype=torch.bfloat16, **options):
        a, b, c = _meta(M, DEPTH, dtype=dtype), _meta(DEPTH, N, dtype=dtype), _meta(M, N)
        return _product, (a, b, c, DEPTH), dict(M=M, N=N, K=K, num_warps=4) | options

    return {
        "wide": (_copy, (x, y, LENGTH), dict(BLOCK=LENGTH)),
        "shifted": (_copy, (shifted, y, LENGTH), dict(BLOCK=LENGTH)),
        "ragged": (_copy, (ragged, y, LENGTH + 1), dict(BLOCK=LENGTH)),
        "small tile": (_copy, (x, y, LENGTH), dict(BLOCK=256)),
        "forgetful": (_copy_forgetful, (x, y, LENGTH), dict(BLOCK=LENGTH)),
        "atomic": (_sum, (x, total, LENGTH), dict(BLOCK=LENGTH)),
        "product": product(num_stages=2),
        "deep product": product(num_stages=6),
        "fp32 product": product(torch.float32, M=16, N=16, K=16),
        "spilling": product(N=512, num_stages=2),  # 512 sums per thread
    }


def main(file: str) -> None:
    found = {}
    calls = _calls()
    for architecture, names in SAMPLES.items():
        for name in names or calls:
            kernel, arguments, options = calls[name]
            targets = compiled.architectures(architecture)
            with record(targets[0]) as launches:
                launch(kernel, (ROWS,), *arguments, **options)
            recorded = [compiled.Recorded(name, target, launches[0]) for target in targets]
            (found[f"{name} {architecture}"],) = compiled.rows(recorded, architecture)
    Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
