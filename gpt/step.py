"""One training step and one evaluation: forward, backward, clipping, update."""

import contextlib

import torch
import torch.nn as nn

from gpt import Refused
from gpt.data import Data, windows
from gpt.optim import learning_rate_scale
from gpt.presets import IGNORE_INDEX, TrainConfig

EVALUATION_TOKENS = 16_384  # in one forward pass of an evaluation


class Precision:
    """In which dtype matrix products run; weights and optimizer state stay fp32."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        # fp16 has no room for small gradients: the loss is scaled up, and the gradients down again
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def autocast(self):
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


class Step:
    """Calling it with a step number trains the model by that step and returns the loss ().

    Step s of a run sees rows s*R to (s+1)*R - 1 of the data, R = batch_size * passes.
    """

    def __init__(self, model: nn.Module, optimizers, data: Data, config: TrainConfig, precision):
        self.model, self.optimizers, self.data = model, optimizers, data
        self.config, self.precision = config, precision
        self.passes = passes_per_step(config)

    def __call__(self, step: int) -> torch.Tensor:
        config, scaler = self.config, self.precision.scaler
        total = 0.0
        for index in range(self.passes):
            first_row = (step * self.passes + index) * config.batch_size
            x, y = self.data.batch(
                config.seed, first_row, config.batch_size, config.model.block_size
            )
            with self.precision.autocast():
                loss = self.model(x, y)[1] / self.passes
            scaler.scale(loss).backward()
            total = total + loss.detach()
        scale = learning_rate_scale(step, config)
        for optimizer in self.optimizers:
            scaler.unscale_(optimizer)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scale
        if config.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        for optimizer in self.optimizers:
            scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        scaler.update()
        return total


def passes_per_step(config: TrainConfig) -> int:
    """How many forward and backward passes are accumulated into one step."""
    tokens, passes = config.tokens_per_step, config.gradient_accumulation_steps
    if tokens and passes:
        raise Refused("give --tokens-per-step or --gradient-accumulation-steps, not both")
    if not tokens:
        return passes or 1
    tokens_per_pass = config.batch_size * config.model.block_size
    if tokens % tokens_per_pass:
        raise Refused(
            f"--tokens-per-step {tokens} is no multiple of the {tokens_per_pass} tokens of one "
            "pass (--batch-size times --block-size)"
        )
    return tokens // tokens_per_pass


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, config: TrainConfig, precision: Precision) -> float:
    """The mean loss over the whole validation split, every position once, without dropout.

    With `eval_iters` it is nanoGPT's estimate instead: the mean over that many random batches.
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
        x, y = windows(data.val, block_size)
        batches = zip(x.split(rows), y.split(rows), strict=True)
    total, count = 0.0, 0
    for x, y in batches:
        with precision.autocast():
            loss = model(x, y)[1]
        counted = (y != IGNORE_INDEX).sum()
        total, count = total + loss.double() * counted, count + counted
    model.train()
    return (total / count).item()
