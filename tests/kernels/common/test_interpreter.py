"""Triton's interpreter as users run it: bf16 is rounded and multiplied as on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from kernels import doctor
from kernels.common.launch import launch
from tests import numerics
from tests.operands import DEVICE, randn

INTERPRETING = doctor.examine()._replace(interpreter=True)
ROOT = Path(__file__).resolve().parents[3]

# without conftest.py: every operation in every dtype by both tables, forward and backward
USER = """
import torch
import kernels
from bench.workloads.operations import CASES, TOKENS, Case, Sizes
from bench.prove.stages.repeat import served_names

SIZES = Sizes("ragged", B=2, T=19, C=20, H=2, V=13)
GREEDY = {"sample_token": {"temperature": 0.0}}
cases = []
for dtype in ("fp32", "fp16", "bf16"):
    cases += [Case(name, SIZES, dtype) for name in served_names(CASES)]
    cases += [Case(name, SIZES, dtype, GREEDY.get(name, {})) for name in served_names(TOKENS)]
for case in cases:
    results = []
    for name in ("triton", "torch"):
        torch.manual_seed(0)
        table = kernels.load(name, "cpu")
        results.append(case.run(table, "cpu"))
    for ours, theirs in zip(*results, strict=True):
        ours, theirs = ours.double(), theirs.double()
        error = ((ours - theirs).norm() / theirs.norm().clamp(min=1e-9)).item()
        assert error < 0.02, f"{case}: {error}"  # bf16 rounds by 0.004, a few times over
print(len(cases))
"""


@pytest.mark.skipif(
    any("does not work with NumPy" in one for one in doctor.advice(INTERPRETING)),
    reason="the interpreter of this Triton does not work with this NumPy",
)
def test_every_operation_is_correct_in_the_interpreter():
    run = subprocess.run(
        [sys.executable, "-c", USER],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        text=True,
        capture_output=True,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == 3 * 12


@triton.jit
def _cast(source_ptr, target_ptr, LENGTH: tl.constexpr, THROUGH: tl.constexpr):
    at = tl.arange(0, LENGTH)
    tl.store(target_ptr + at, tl.load(source_ptr + at).to(THROUGH))


@triton.jit
def _dot(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    product = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at))
    tl.store(out_ptr + at, product)


def cast(source, dtype, through):
    target = torch.empty(source.shape, dtype=dtype, device=DEVICE)
    launch(_cast, (1,), source, target, LENGTH=len(source), THROUGH=through)
    return target


def hard_numbers():
    """Every bf16 bit pattern, the tie above each, and the fp32 numbers next to the tie."""
    pattern = torch.arange(2**16, dtype=torch.int64) << 16
    bits = torch.cat([pattern, pattern + 0x7FFF, pattern + 0x8000, pattern + 0x8001])
    return bits.to(torch.int32).view(torch.float32).to(DEVICE)  # wraps: the sign bit included


def assert_same_numbers(a, b):
    assert torch.equal(a.isnan(), b.isnan())
    assert torch.equal(a[~a.isnan()], b[~b.isnan()])


def test_bf16_casts_round_to_nearest_even():
    x = hard_numbers()  # ties, infinities, NaN, subnormals, overflow to infinity
    assert_same_numbers(cast(x, torch.bfloat16, tl.bfloat16), x.bfloat16())


def test_bf16_widens_exactly():
    x = hard_numbers()[: 2**16].bfloat16()
    assert_same_numbers(cast(x, torch.float32, tl.float32), x.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_bf16_to_and_from_other_types(dtype):
    through = {torch.float16: tl.float16, torch.float64: tl.float64, torch.int32: tl.int32}[dtype]
    x = randn(256, scale=100, dtype=torch.bfloat16)
    assert torch.equal(cast(x, dtype, through), x.to(dtype))
    assert torch.equal(cast(x.to(dtype), torch.bfloat16, tl.bfloat16), x.to(dtype).bfloat16())


def test_bf16_dot_multiplies_numbers():
    a, b = randn(32, 32, dtype=torch.bfloat16), randn(32, 32, dtype=torch.bfloat16, seed=1)
    out = torch.empty(32, 32, device=DEVICE)
    launch(_dot, (1,), a, b, out, N=32)
    numerics.assert_rounded_once(out, a.double() @ b.double(), a.float() @ b.float())
