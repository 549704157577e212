"""What the torch table computes on a CPU, against the definitions in fp64."""

from functools import partial

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from kernels import torch_cpu, torch_ops
from tests.kernels.flash_attention.plain import plain_attention
from tests.numerics import hold_against
from tests.operands import randn

EPS = 1e-5
DTYPES = (torch.float32, torch.bfloat16)
CASES = [  # T, H, norm, rotated, window
    (1, 1, True, True, 0),
    (33, 2, True, True, 0),
    (9, 4, True, True, 4),
    (65, 3, False, True, 0),
    (17, 2, True, False, 3),
    (17, 2, False, False, 0),
]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="operands are on the GPU")


def options(T, H, norm, rotated, window, D=8):
    """Of `attention_qkv`, with independent cos and sin."""
    found = {"n_head": H, "qk_norm": norm, "eps": EPS, "window": window}
    return found | ({"cos": randn(T, D, seed=1), "sin": randn(T, D, seed=2)} if rotated else {})


def plain(qkv, n_head, qk_norm, eps, window, cos=None, sin=None):
    """The same by PyTorch's autograd."""
    qk, v = qkv.unflatten(2, (-1, 8)).split((2 * n_head, n_head), dim=2)
    q, k = torch_ops._positioned(qk, qk_norm, eps, cos, sin).chunk(2, dim=2)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return plain_attention(q, k, v, window=window).transpose(1, 2).flatten(2)


def of_attention(qkv, case, dropout_p=0.0):
    """`ShortAttention` of qkv, in fp64 too."""
    _, H, norm, rotated, window = case
    mask, _ = torch_ops.attention_mask(qkv[:, None], qkv[:, None], True, window, None)
    angles = [options(*case)[name].to(qkv.dtype) if rotated else None for name in ("cos", "sin")]
    arguments = mask, EPS if norm else None, *angles, dropout_p, 8**-0.5
    return torch_cpu.ShortAttention.apply(qkv, H, *arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_is_as_exact_as_by_autograd(case, dtype):
    """By way of the table, in the dtype of the operands; 1 / rms is rounded once more."""
    qkv = randn(2 - (case[0] == 1), case[0], 3 * case[1] * 8, dtype=dtype)
    functions = (partial(f, **options(*case)) for f in (torch_ops.attention_qkv, plain))
    hold_against(*functions, (qkv,), compute=dtype, factor=3.0, gradient_factor=3.0)


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("case", [(5, *case[1:]) for case in CASES], ids=str)
def test_gradients_of_attention_match_the_definition(case, p):
    def function(qkv):
        torch.manual_seed(0)  # of the dropout
        return of_attention(qkv, case, p)

    qkv = randn(2, 5, 3 * case[1] * 8, dtype=torch.float64).requires_grad_()
    assert gradcheck(function, [qkv], fast_mode=True)


def test_dropout_of_attention_keeps_the_mean():
    """out is linear in the kept weights: over many masks its mean is that without dropout."""
    case, qkv = CASES[1], randn(1, 33, 48, dtype=torch.float64)
    outs = torch.stack([of_attention(qkv, case, 0.3) for _ in range(2_000)])
    error = outs.mean(0) - of_attention(qkv, case)
    assert (error.abs() <= 6 * outs.std(0) / 2_000**0.5).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu_squared_is_as_exact_as_by_autograd(dtype):
    def plain(x, w1, w2):
        return F.linear(F.relu(F.linear(x, w1)).square(), w2)

    def ours(x, w1, w2):
        return torch_ops.feed_forward(x, w1, None, w2, None, activation="relu_squared")

    inside = [randn(*s, dtype=dtype, seed=len(s)) for s in ((2, 9, 24), (72, 24), (24, 72))]
    hold_against(ours, plain, inside, compute=dtype, factor=3.0, gradient_factor=3.0)
    exact = [each.double().requires_grad_() for each in inside]
    assert gradcheck(torch_cpu.ReluSquared.apply, exact, fast_mode=True)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.99999])
def test_dropout_keeps_its_rate_and_its_mean(p):
    """Within six standard deviations, also of the numbers that share a word."""
    mask = torch_cpu.keep_mask(torch.empty(4, 250_001), p)
    rate = round(p * 2**16) / 2**16  # which is within 2^-17 of p
    kept = mask > 0
    assert (
        (kept.double().mean(1) - (1 - rate)).abs() <= 6 * (rate * (1 - rate) / 250_001) ** 0.5
    ).all()
    torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / max(1 - rate, 2**-16)))
    a, b = (kept.flatten()[i : 10**6 : 4].double() - (1 - rate) for i in (0, 1))
    assert (a * b).mean().abs() <= 6 * rate * (1 - rate) / 250_000**0.5
    assert not p or not torch.equal(mask, torch_cpu.keep_mask(mask, p))
