"""Dropout on the attention weights: the mask is known, so everything is compared exactly."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

from gpt.config.model import ModelConfig
from gpt.models import packed, reference
from gpt.models.layouts import packed_from_lecture
from kernels import torch_ops
from kernels.attention.attention import attention, attention_qkv
from kernels.common import launch, philox
from tests.kernels.attention.plain_attention import SEED, hold, operands
from tests.numerics import DEVICE, DTYPES, assert_deterministic, differentiate, randn, sizes

# --- with a known mask ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("T", "D", "p"), [(7, 16, 0.5), (33, 20, 0.1), (65, 64, 0.2)])
def test_as_exact_as_the_plain_computation(T, D, p, dtype):
    hold(operands(2, 2, 2, T, T, D, dtype), p)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("H", "Hkv", "Tq", "Tk", "causal"),
    [(2, 1, 33, 70, True), (4, 2, 70, 33, False), (1, 1, 129, 129, True)],
)
def test_cross_attention_and_grouped_heads(H, Hkv, Tq, Tk, causal, dtype):
    hold(operands(1, H, Hkv, Tq, Tk, 16, dtype), 0.2, causal=causal)


@settings(max_examples=8)
@given(
    sizes(100).filter(lambda size: size >= 7),
    sizes(100).filter(lambda size: size >= 7),
    strategies.sampled_from([1 / 65536, 0.2, 0.9]),
)
def test_any_shape_and_rate(Tq, Tk, p):
    hold(operands(1, 2, 2, Tq, Tk, 16), p, scale=0.5)


def test_gradients_are_derivatives():
    tensors = [tensor.double().requires_grad_() for tensor in operands(1, 2, 1, 3, 3, 1)]
    assert gradcheck(partial(attention, dropout_p=0.4, seed=SEED), tensors)


@pytest.mark.parametrize("D", [64, 128, 256])
@pytest.mark.parametrize("family", launch.FAMILIES)
def test_the_mask_does_not_follow_the_tiles(family, D):
    with launch.target(family):
        hold(operands(1, 1, 1, 257, 65, D, torch.float16), 0.5)


@pytest.mark.parametrize("D", [64, 128, 256])
def test_the_mask_does_not_follow_the_tiles_of_32_bits(D):
    hold(operands(1, 1, 1, 65, 33, D), 0.5)


class Drop(torch.nn.Module):
    """nn.Dropout with a given mask of one head, (B, T, T)."""

    def __init__(self, keep, scale):
        super().__init__()
        self.keep, self.scale = keep, scale

    def forward(self, wei):
        return wei * self.keep * self.scale


def test_the_lectures_heads_with_the_same_mask():
    """MultiHeadAttention of the lecture at its p = 0.2: output, every weight's gradient, x's."""
    config = ModelConfig(block_size=40, n_layer=1, n_head=3, n_embd=48, vocab_size=5, dropout=0.2)
    lecture = reference.GPT(config).double().to(DEVICE)
    x, dout = (randn(2, 37, 48, dtype=torch.float64, seed=seed) for seed in (0, 3))
    x.requires_grad_()

    keep = philox.attention_kept(SEED, 2, 3, 37, 37, 0.2)
    _, scale = philox.threshold_and_scale(0.2)
    for h, head in enumerate(lecture.blocks[0].sa.heads):
        head.dropout = Drop(keep[:, h], scale)
    seeded = partial(attention_qkv, seed=SEED)
    ours = packed.GPT(config, torch_ops.OPS._replace(attention_qkv=seeded)).double().to(DEVICE)
    ours.load_state_dict(packed_from_lecture(lecture.state_dict(), config))

    gradients, dx = {}, {}
    for gpt in (lecture, ours):
        attend = gpt.blocks[0].sa
        attend.dropout = torch.nn.Identity()  # the one after the projection is another operation
        torch.nn.init.zeros_(attend.proj.bias)  # and so is the packed model's bias
        weights = {name: w for name, w in attend.named_parameters() if name != "proj.bias"}
        dx[gpt], *dweights = torch.autograd.grad(attend(x), (x, *weights.values()), dout)
        gradients[gpt] = {name: torch.zeros_like(w) for name, w in gpt.named_parameters()}
        for name, dweight in zip(weights, dweights, strict=True):
            gradients[gpt][f"blocks.0.sa.{name}"] = dweight
    torch.testing.assert_close(ours.blocks[0].sa(x), lecture.blocks[0].sa(x))
    torch.testing.assert_close(dx[ours], dx[lecture])
    torch.testing.assert_close(gradients[ours], packed_from_lecture(gradients[lecture], config))


# --- the coins ------------------------------------------------------------------------------------


def weights_of(B, H, T, p, seed=None):
    """The attention weights that the kernel used: v is the identity, and all logits are equal."""
    zero = torch.zeros(B, H, T, T, device=DEVICE)
    identity = torch.eye(T, device=DEVICE).expand(B, H, T, T)
    return attention(zero, zero, identity, causal=False, dropout_p=p, seed=seed)  # (B, H, T, T)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5])
def test_the_rate_lies_within_four_sigma_and_the_mean_is_kept(p):
    T = 64
    weights = weights_of(2, 2, T, p, SEED)
    sigma = math.sqrt(p * (1 - p) / weights.numel())
    assert abs((weights == 0).float().mean().item() - p) < 4 * sigma
    assert abs(weights.sum(-1).mean().item() - 1) < 4 * sigma / (1 - p)
    kept = weights[weights > 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / T / (1 - p)), rtol=1e-4, atol=0)


def correlation(a, b, p):
    """Correlation of two masks in units of its standard deviation under independence."""
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


def test_without_a_seed_the_generator_is_asked():
    torch.manual_seed(5)
    first, second = weights_of(1, 1, 33, 0.5), weights_of(1, 1, 33, 0.5)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(weights_of(1, 1, 33, 0.5), first)


def test_the_generator_is_left_alone_where_nothing_is_dropped():
    q, k, v = operands(1, 1, 1, 3, 3, 16)
    before = torch.get_rng_state()
    assert torch.equal(attention(q, k, v, dropout_p=0.0, seed=SEED), attention(q, k, v))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_is_dropped(dtype):
    tensors = operands(1, 2, 2, 33, 33, 16, dtype)
    dout = randn(1, 2, 33, 16, dtype=dtype, seed=3)
    run = partial(attention, dropout_p=1.0)
    outputs, gradients = differentiate(run, tensors, [dout])
    for tensor in (*outputs, *gradients):
        assert torch.equal(tensor, torch.zeros_like(tensor))


# --- replay ---------------------------------------------------------------------------------------


def test_same_seed_same_bits():
    tensors = operands(1, 4, 2, 65, 65, 16, torch.float16)
    upstream = [randn(1, 4, 65, 16, dtype=torch.float16, seed=4)]
    run = partial(attention, dropout_p=0.3, seed=SEED)
    assert_deterministic(lambda: sum(differentiate(run, tensors, upstream), ()), repeats=2)


def test_a_second_backward_replays_the_same_mask():
    tensors = [tensor.requires_grad_() for tensor in operands(1, 2, 2, 65, 65, 16)]
    out = attention(*tensors, dropout_p=0.3)
    dout = randn(*out.shape, seed=4)
    first = torch.autograd.grad(out, tensors, dout, retain_graph=True)
    attention(*tensors, dropout_p=0.3)  # another draw in between
    second = torch.autograd.grad(out, tensors, dout)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_activation_checkpointing_draws_the_same_seed():
    def gradients(run):
        torch.manual_seed(11)
        qkv = randn(1, 33, 96).requires_grad_()
        return torch.autograd.grad(run(qkv).square().sum(), qkv)[0]

    run = partial(attention_qkv, n_head=2, dropout_p=0.3)
    again = partial(checkpoint, run, use_reentrant=False)
    assert torch.equal(gradients(run), gradients(again))
