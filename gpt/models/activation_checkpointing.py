"""Activation checkpointing (Chen et al. 2016): a third more computation, a fraction of the memory.

Only the input of each block is kept, and the backward pass computes the block again. For the packed
GPT the input is two tensors, the residual stream and the branch that is not yet added to it. The
state of the generators is restored for dropout, so the gradients are equal in every bit.
"""

from functools import partial
from typing import Any

import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from .. import UserError
from ..config.model import ModelConfig
from .reference import Blocks


class Recomputed(Blocks):
    """Blocks under unchanged names, each of which is recomputed in the backward pass."""

    def __init__(self, blocks: nn.Sequential, has_dropout: bool):
        super().__init__(*blocks)
        self.has_dropout = has_dropout  # else no generator state needs to be kept

    def forward(self, x: Any, **options: Any) -> Any:  # type: ignore[override]
        if not self.training:
            return super().forward(x, **options)
        for block in self:
            call = partial(block, **options)
            x = checkpoint(call, x, use_reentrant=False, preserve_rng_state=self.has_dropout)
        return x


def recompute_blocks(model: nn.Module, config: ModelConfig) -> None:
    """Make `model` keep only the inputs of its blocks; raises UserError if it has no blocks."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential):
        raise UserError(
            "--activation-checkpointing supports only a plain sequence of blocks, which this model "
            "does not have; remove it"
        )
    model.blocks = Recomputed(blocks, has_dropout=config.dropout > 0)
