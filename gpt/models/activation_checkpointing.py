"""Activation checkpointing (Chen et al. 2016): a third more computation, a fraction of the memory.

Of each block its input alone is kept, and backward computes the block again. (The input is two
tensors, the residual stream and the branch still to be added to it; of the reference it is one.)
Dropout must fall on the same elements twice, so the generators are set back to where they were; the
gradients are those of a model that keeps everything, bit for bit.
"""

import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from gpt import UserError
from gpt.config.model import ModelConfig


class Recomputed(nn.Sequential):
    """The same blocks under the same names; in training, each is computed again in backward."""

    def __init__(self, blocks: nn.Sequential, draws: bool):
        super().__init__(*blocks)
        self.draws = draws  # random numbers: where none are, no state needs to be kept

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        for block in self:
            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=self.draws)
        return x


def recompute_blocks(model: nn.Module, config: ModelConfig) -> None:
    """Let `model` keep the inputs of its blocks alone."""
    if not isinstance(getattr(model, "blocks", None), nn.Sequential):
        raise UserError(
            "--activation-checkpointing needs a model of blocks alone, which this is not"
        )
    model.blocks = Recomputed(model.blocks, draws=config.dropout > 0)
