"""QK norm and rotary embedding inside the packed attention."""

from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from kernels import torch_ops
from kernels.flash_attention.attention import attention_qkv
from kernels.flash_attention.rotary import rotary_backward, rotary_forward
from tests.numerics import hold_against
from tests.operands import DTYPES, randn

EPS = 1e-5


def angles(T, D):
    """Independent cos and sin (T, D), so that swapping them is noticed."""
    return randn(T, D, seed=11), randn(T, D, seed=12)


def rotary(qkv, dy, counts, positions):
    """y, and dqkv, which is 0 for the values."""
    y, dqkv = torch.empty_like(dy), torch.zeros_like(qkv)
    rotary_forward(qkv, y, counts, positions)
    rotary_backward(dy, qkv, dqkv, counts, positions)
    return y, dqkv


def by_pytorch(qkv, dy, counts, positions):
    qkv = qkv.detach().requires_grad_()
    norm, eps, *angles = positions
    heads = qkv.unflatten(2, (sum(counts), -1))[:, :, : counts[0] + counts[1]]
    cos, sin = (x if x is None else x[: qkv.shape[1]].to(qkv.dtype) for x in angles)
    y = torch_ops._positioned(heads, norm, eps, cos, sin).flatten(2)
    return y.detach(), torch.autograd.grad(y, qkv, dy)[0]


def assert_rounded_once(qkv, counts, positions):
    """qkv (B, T, (H + 2 Hkv) D), counts H, Hkv, Hkv."""
    B, T, C = qkv.shape
    dy = randn(B, T, C // sum(counts) * sum(counts[:2]), dtype=qkv.dtype, seed=7)
    functions = (partial(f, counts=counts, positions=positions) for f in (rotary, by_pytorch))
    hold_against(*functions, (qkv, dy), backward=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    ("B", "T", "H", "Hkv", "D"), [(1, 1, 1, 1, 2), (2, 33, 4, 2, 64), (1, 5, 6, 1, 20)]
)
def test_results_are_rounded_once(B, T, H, Hkv, D, norm, dtype):
    counts, positions = (H, Hkv, Hkv), (norm, EPS, *angles(T + 3, D))
    qkv = randn(B, T, (H + 2 * Hkv) * D, dtype=dtype)
    assert_rounded_once(qkv, counts, positions)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", [1, 3, 33, 64])
def test_qk_norm_without_angles(D, dtype):
    """D may be odd: the two halves need not be equal."""
    counts, positions = (2, 1, 1), (True, EPS, None, None)
    qkv = 1e-2 * randn(2, 9, 4 * D, dtype=dtype)  # so small that eps matters, also for one channel
    assert_rounded_once(qkv, counts, positions)


def test_gradients_match_the_definition():
    qkv = randn(1, 3, 4 * 2, dtype=torch.float64).requires_grad_()
    cos, sin = (x.double() for x in angles(3, 2))
    options = {"n_kv_head": 1, "qk_norm": True, "cos": cos, "sin": sin}
    assert gradcheck(partial(attention_qkv, n_head=2, **options), [qkv], fast_mode=True)
