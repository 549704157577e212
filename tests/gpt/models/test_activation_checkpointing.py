"""Activation checkpointing changes the memory of a training step, and no bit of its result."""

from dataclasses import replace

import pytest
import torch

import kernels
from gpt.models.build import build
from tests.gpt.configs import CONFIGS, LECTURE, draw_tokens
from tests.operands import DEVICE

DROPPING = replace(LECTURE, dropout=0.3, embedding_dropout=0.2)

MODERN = replace(CONFIGS["modern"], dropout=0.3, projection_init="normal")


def make(config, implementation, recompute):
    torch.manual_seed(1)
    ops = None if implementation == "reference" else kernels.load(implementation, DEVICE)
    model = build(config, ops).to(DEVICE)
    if recompute:
        random = config.dropout > 0
        model.blocks.checkpointing = {"use_reentrant": False, "preserve_rng_state": random}
    return model


def two_passes(model):
    """The losses of two passes, and the sums of their gradients."""
    torch.manual_seed(2)
    tokens = draw_tokens(2, 9).to(DEVICE)
    losses = []
    for _ in range(2):
        loss = model(tokens[:, :-1], tokens[:, 1:])[1]
        loss.backward()
        losses.append(loss.item())
    return losses, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("implementation", "config"),
    [
        *((implementation, DROPPING) for implementation in ("reference", "torch")),
        *((implementation, MODERN) for implementation in ("reference", "torch")),
        ("triton", replace(DROPPING, n_layer=1, n_embd=16)),
        ("torch", LECTURE),
    ],
)
def test_losses_and_gradients_are_equal_in_every_bit(implementation, config):
    losses, gradients = two_passes(make(config, implementation, recompute=False))
    assert (losses[0] != losses[1]) == (config.dropout > 0)  # another mask in each pass
    again, others = two_passes(make(config, implementation, recompute=True))
    assert again == losses
    for gradient, other in zip(gradients, others, strict=True):
        assert torch.equal(gradient, other)


def kept_bytes(model):
    """The bytes that autograd keeps between forward and backward."""
    sizes = {}

    def keep(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = draw_tokens(8, 9).to(DEVICE)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(tokens[:, :-1], tokens[:, 1:])[1]
    loss.backward()
    return sum(sizes.values())


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_only_the_inputs_of_blocks_are_kept(implementation):
    sizes = {}
    for layers in (2, 6):
        config = replace(DROPPING, n_layer=layers)
        sizes[layers] = [kept_bytes(make(config, implementation, again)) for again in (False, True)]
    all_of_it, inputs = (sizes[6][again] - sizes[2][again] for again in (0, 1))
    assert all_of_it > 4 * 10 * 8 * 8 * 32 * 4  # ten activations of (B, T, C) in each block
    tensors = 1 if implementation == "reference" else 2  # the stream, and the branch to add
    assert inputs <= 4 * tensors * 8 * 8 * 32 * 4
