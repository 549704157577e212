"""Dropout on the attention weights: rate, correlation, and replay of the mask."""

import math
from functools import partial

import pytest
import torch

from kernels.attention.attention import attention
from tests.kernels.attention.plain_attention import SEED, operands
from tests.numerics import DEVICE, DTYPES, differentiate, randn

# --- the mask -------------------------------------------------------------------------------------


def weights_of(B, H, T, p, seed=None):
    """The weights after dropout: v is the identity, and all logits are equal."""
    zero = torch.zeros(B, H, T, T, device=DEVICE)
    identity = torch.eye(T, device=DEVICE).expand(B, H, T, T)
    return attention(zero, zero, identity, causal=False, dropout_p=p, seed=seed)  # (B, H, T, T)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5])
def test_the_rate_is_within_four_sigma_and_the_mean_is_preserved(p):
    T = 64
    weights = weights_of(2, 2, T, p, SEED)
    sigma = math.sqrt(p * (1 - p) / weights.numel())
    assert abs((weights == 0).float().mean().item() - p) < 4 * sigma
    assert abs(weights.sum(-1).mean().item() - 1) < 4 * sigma / (1 - p)
    kept = weights[weights > 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / T / (1 - p)), rtol=1e-4, atol=0)


def correlation(a, b, p):
    """The correlation of two masks in units of its standard deviation under independence."""
    a, b = ((x > 0).double() - (1 - p) for x in (a, b))
    return ((a * b).mean() / (p * (1 - p)) * math.sqrt(a.numel())).item()


def test_seeds_batches_heads_and_rows_are_uncorrelated():
    p = 0.5
    weights, next_step = (weights_of(2, 2, 64, p, SEED + step) for step in (0, 1))
    assert abs(correlation(weights, next_step, p)) < 4
    assert abs(correlation(weights[0], weights[1], p)) < 4
    assert abs(correlation(weights[:, 0], weights[:, 1], p)) < 4
    assert abs(correlation(weights[0, 1], weights[1, 0], p)) < 4
    assert abs(correlation(weights[:, :, 1:], weights[:, :, :-1], p)) < 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_of_1_drops_everything(dtype):
    tensors = operands(1, 2, 2, 33, 33, 16, dtype)
    dout = randn(1, 2, 33, 16, dtype=dtype, seed=3)
    run = partial(attention, dropout_p=1.0)
    outputs, gradients = differentiate(run, tensors, [dout])
    for tensor in (*outputs, *gradients):
        assert torch.equal(tensor, torch.zeros_like(tensor))


# --- replay ---------------------------------------------------------------------------------------


def test_a_second_backward_replays_the_same_mask():
    tensors = [tensor.requires_grad_() for tensor in operands(1, 2, 2, 65, 65, 16)]
    out = attention(*tensors, dropout_p=0.3)
    dout = randn(*out.shape, seed=4)
    first = torch.autograd.grad(out, tensors, dout, retain_graph=True)
    attention(*tensors, dropout_p=0.3)  # another draw in between
    second = torch.autograd.grad(out, tensors, dout)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
