"""The optimizers of a run, AdamW and Muon for the blocks' matrices, and their learning rates."""

import math
from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn as nn

from ..config.train import TrainConfig
from .muon import Muon

Schedule = Callable[[int], float]  # step -> factor of the learning rates


def make_optimizers(
    model: nn.Module,
    config: TrainConfig,
    adamw: Callable[..., torch.optim.Optimizer],
    dtype: torch.dtype = torch.float32,
) -> list[torch.optim.Optimizer]:
    """The optimizers that `config` selects, in the order in which they step.

    `adamw(groups, lr=, betas=, eps=, weight_decay=)` constructs the AdamW. `dtype` is the dtype of
    the run's matrix products, Muon's included.
    """
    matrices = block_matrices(model) if config.optimizer == "muon" else []
    in_muon = {id(weight) for weight, _ in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in in_muon]
    decayed = [p for p in rest if config.decay_all or p.dim() >= 2]
    others = [p for p in rest if not config.decay_all and p.dim() < 2]  # as GPT-2: biases and norms
    pairs = ((decayed, config.weight_decay), (others, 0.0))
    groups = [{"params": params, "weight_decay": decay} for params, decay in pairs if params]
    betas = (config.beta1, config.beta2)
    optimizers = [adamw(groups, lr=config.learning_rate, betas=betas, eps=1e-8, weight_decay=0.0)]
    if matrices:
        options = {"lr": config.muon_learning_rate, "weight_decay": config.weight_decay}
        optimizers.append(Muon(matrices, **options, dtype=dtype))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = float(group["lr"])  # which the schedule scales
    return optimizers


def block_matrices(model: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """The weights of the blocks' linear layers, each with the number of matrices it packs.

    A packed projection holds H + 2 Hkv matrices (D, C): query, key and value of every head are
    orthogonalised separately, as they are in the lecture's modules.
    """
    return [
        (cast(nn.Parameter, module.weight), getattr(module, "matrices", 1))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("blocks.")
    ]


def schedule_of(config: TrainConfig) -> Schedule:
    """The learning rate at a step, as a fraction of the configured one.

    As in nanoGPT it is constant without --decay-lr. With it, (step + 1) / (warmup_iters + 1) during
    warm-up; then a cosine from 1 down to min_lr / learning_rate at lr_decay_iters, by default
    max_iters, and constant afterwards, also if the warm-up ends only then.
    """
    if not config.decay_lr:
        return lambda step: 1.0
    warmup, end = config.warmup_iters, config.lr_decay_iters or config.max_iters
    lowest = config.min_lr / config.learning_rate

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if step >= end:
            return lowest
        cosine = 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (end - warmup)))
        return lowest + cosine * (1.0 - lowest)

    return scale


def set_learning_rates(optimizers: Iterable[torch.optim.Optimizer], scale: float) -> None:
    """Set every learning rate to `scale` times its initial value, in place if it is a tensor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(group["initial_lr"] * scale)
            else:
                group["lr"] = group["initial_lr"] * scale
