"""The loss over the validation split."""

import torch
import torch.nn as nn

from gpt import ranks
from gpt.data import Data
from gpt.presets import IGNORE_INDEX, TrainConfig
from gpt.step import Precision

EVALUATION_TOKENS = 16_384  # in one forward pass


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, config: TrainConfig, precision: Precision) -> float:
    """The mean loss over the whole validation split, every position once, without dropout.

    Every rank takes its share of the windows. With `eval_iters` it is nanoGPT's estimate instead:
    the mean over that many random batches.
    """
    model.eval()
    block_size = config.model.block_size
    if config.eval_iters:
        batches = (
            data.batch(config.seed, i * config.batch_size, config.batch_size, block_size, "val")
            for i in range(config.eval_iters)
        )
    else:
        rows = max(1, EVALUATION_TOKENS // block_size)
        x, y = (each[ranks.rank() :: ranks.world()] for each in data.validation(block_size))
        batches = zip(x.split(rows), y.split(rows), strict=True)
    total = torch.zeros(2, dtype=torch.float64)  # of losses, of counted targets
    for x, y in batches:
        with precision.autocast():
            loss = model(x, y)[1]
        counted = (y != IGNORE_INDEX).sum().item()
        total += torch.tensor([loss.item() * counted, counted], dtype=torch.float64)
    model.train()
    loss_sum, count = ranks.total_on(precision.device, total)
    return loss_sum / count
