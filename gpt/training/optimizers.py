"""The optimizers of a run: AdamW with its parameter groups, and Muon for the blocks' matrices."""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn as nn

from gpt.config.train import TrainConfig
from gpt.training.muon import Muon


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
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (config.beta1, config.beta2)
    optimizers = [adamw(groups, lr=config.learning_rate, betas=betas, eps=1e-8, weight_decay=0.0)]
    if matrices:
        optimizers.append(Muon(matrices, lr=config.muon_learning_rate, dtype=dtype))
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
