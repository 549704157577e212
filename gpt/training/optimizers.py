"""Which parameter is updated how: AdamW groups, Muon for the blocks' matrices, the schedule."""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn as nn

from gpt.config.train import TrainConfig


def make_optimizers(model: nn.Module, config: TrainConfig, adamw: Callable, dtype=torch.float32):
    """The optimizers of a run, in the order in which they step.

    `adamw(groups, lr=, betas=, eps=, weight_decay=)` makes the AdamW;
    `dtype` is that of the run's matrix products, Muon's included.
    """
    matrices = blocks_matrices(model) if config.optimizer == "muon" else []
    taken = {id(weight) for weight, _ in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    if config.decay_all:
        groups = [{"params": rest, "weight_decay": config.weight_decay}]
    else:
        decayed = [p for p in rest if p.dim() >= 2]
        others = [p for p in rest if p.dim() < 2]
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
            group["initial_lr"] = float(group["lr"])  # what the schedule scales
    return optimizers


def set_learning_rates(optimizers, scale: float) -> None:
    """Every learning rate is its initial one times `scale`, on the device where it lives there."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(group["initial_lr"] * scale)
            else:
                group["lr"] = group["initial_lr"] * scale


def learning_rate_scale(step: int, config: TrainConfig) -> float:
    """The schedule at `step` as a fraction of the learning rate: warm-up, then a cosine.

    As in nanoGPT: (step + 1) / (warmup + 1) while warming up, then from 1 down to
    min_lr / learning_rate at lr_decay_iters, and constant after it.
    """
    if step < config.warmup_iters:
        return (step + 1) / (config.warmup_iters + 1)
    if not config.decay_lr:
        return 1.0
    end = config.lr_decay_iters or config.max_iters
    progress = min(1.0, (step - config.warmup_iters) / max(1, end - config.warmup_iters))
    lowest = config.min_lr / config.learning_rate
    return lowest + 0.5 * (1.0 + math.cos(math.pi * progress)) * (1.0 - lowest)


def blocks_matrices(model: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """The matrices inside the blocks, each with the number of matrices that lie in it.

    A packed projection holds H + 2 Hkv of them, (D, C) each: query, key and value of every head
    are orthogonalised apart, as they are in the lecture's modules.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("blocks."):
            found.append((module.weight, getattr(module, "matrices", 1)))
    return found


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024, "Muon: an optimizer for hidden layers").

    update = orthogonalise(gradient + momentum * buffer), scaled by sqrt(max(1, rows / columns)).
    Matrices of one shape are orthogonalised as one batch.
    """

    found_inf = None  # a tensor () on the device, as PyTorch's have it: not 0, and no step is taken

    def __init__(self, matrices: Iterable[tuple[nn.Parameter, int]], lr, momentum=0.95, dtype=None):
        groups: dict[tuple, dict] = {}
        for weight, count in matrices:
            shape = (weight.shape[0] // count, weight.shape[1])
            group = groups.setdefault(shape, {"params": [], "shape": shape})
            group["params"].append(weight)
        if weight.is_cuda:
            lr = torch.tensor(lr, device=weight.device)  # for a CUDA graph's replays
        self.dtype = dtype  # of the products in `orthogonalise`
        super().__init__(list(groups.values()), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            shape, momentum, weights = group["shape"], group["momentum"], group["params"]
            buffers = [self._buffer(weight) for weight in weights]
            gradients, pace = [weight.grad for weight in weights], group["lr"]
            if self.found_inf is not None:  # a buffer that is mixed with itself stays what it is
                bad = self.found_inf > 0
                pairs = zip(buffers, gradients, strict=True)
                gradients = [torch.where(bad, *pair) for pair in pairs]
                pace = pace * ~bad
            torch._foreach_lerp_(buffers, gradients, 1.0 - momentum)
            updates = torch._foreach_lerp(gradients, buffers, momentum)  # Nesterov's look ahead
            batch = torch.cat([update.view(-1, *shape) for update in updates])  # (N, rows, columns)
            batch = orthogonalise(batch.to(self.dtype)).mul_(max(1.0, shape[0] / shape[1]) ** 0.5)
            sizes = [weight.numel() // (shape[0] * shape[1]) for weight in weights]
            for weight, update in zip(weights, batch.split(sizes), strict=True):
                weight.sub_(update.view_as(weight) * pace)

    def _buffer(self, weight):
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Near-orthogonal matrices with the same singular vectors: (N, rows, columns) -> the same.

    A quintic Newton-Schulz iteration, X <- a X + (b A + c A^2) X with A = X X^T, with Jordan's
    coefficients, which bring every singular value into about [0.7, 1.2] in five steps.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
