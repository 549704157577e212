"""Activation checkpointing computes blocks again in the backward pass, and changes no bit."""

from dataclasses import replace

import pytest
import torch

import kernels
from gpt.models.build import build
from tests.gpt.configs import CONFIGS, LECTURE, draw_tokens
from tests.operands import DEVICE

DROPPING = replace(LECTURE, dropout=0.3, embedding_dropout=0.2)
MODERN = replace(CONFIGS["modern"], dropout=0.3, projection_init="normal")


def two_passes(config, implementation, recompute):
    """The losses of two passes, how often a block was computed, and the sums of the gradients."""
    torch.manual_seed(1)
    ops = None if implementation == "reference" else kernels.load(implementation, DEVICE)
    model = build(config, ops).to(DEVICE)
    if recompute:
        random = config.dropout > 0
        model.blocks.checkpointing = {"use_reentrant": False, "preserve_rng_state": random}
    computed, losses = [], []
    model.blocks[0].register_forward_pre_hook(lambda *_: computed.append(1))
    torch.manual_seed(2)
    tokens = draw_tokens(2, 9).to(DEVICE)
    for _ in range(2):
        loss = model(tokens[:, :-1], tokens[:, 1:])[1]
        loss.backward()
        losses.append(loss.item())
    return losses, len(computed), [parameter.grad for parameter in model.parameters()]


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
    losses, computed, gradients = two_passes(config, implementation, recompute=False)
    assert (losses[0] != losses[1]) == (config.dropout > 0)  # another mask in each pass
    assert computed == 2
    again, computed, others = two_passes(config, implementation, recompute=True)
    assert again == losses
    assert computed == 4
    assert all(map(torch.equal, gradients, others))
