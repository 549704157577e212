"""Muon: momentum, orthogonalised, for the matrices of the blocks."""

from collections.abc import Iterable

import torch
import torch.nn as nn


class Muon(torch.optim.Optimizer):
    """Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".

    update = orthogonalise(gradient + momentum * buffer) * sqrt(max(1, rows / columns)).
    weight -= lr * (update + weight_decay * weight)     (Liu et al. 2025, "Muon is scalable ...")

    Matrices of the same shape are orthogonalised as one batch.
    """

    found_inf: torch.Tensor | None = None  # (): as for PyTorch's optimizers, not 0 skips the step

    def __init__(
        self,
        matrices: Iterable[tuple[nn.Parameter, int]],  # a weight, and how many matrices it packs
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,  # decoupled, as AdamW's
        dtype: torch.dtype | None = None,  # of the products in `orthogonalise`
    ):
        groups: dict[tuple[int, int], dict] = {}
        for weight, count in matrices:
            shape = (weight.shape[0] // count, weight.shape[1])
            group = groups.setdefault(shape, {"params": [], "shape": shape})
            group["params"].append(weight)
        self.dtype = dtype
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(list(groups.values()), defaults)
        for group in self.param_groups:
            device = group["params"][0].device
            if device.type == "cuda":  # a tensor there, so that a CUDA graph's replays read it
                group["lr"] = torch.tensor(lr, device=device)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure
        """Update the weights that have a gradient."""
        for group in self.param_groups:
            shape, momentum, rate = group["shape"], group["momentum"], group["lr"]
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            buffers = [self._buffer(weight) for weight in weights]
            gradients = [weight.grad for weight in weights]
            if self.found_inf is not None:  # mixing a buffer with itself leaves it as it is
                bad = self.found_inf > 0
                pairs = zip(buffers, gradients, strict=True)
                gradients = [torch.where(bad, *pair) for pair in pairs]
                rate = rate * ~bad
            torch._foreach_lerp_(buffers, gradients, 1.0 - momentum)
            updates = torch._foreach_lerp(gradients, buffers, momentum)  # Nesterov momentum
            batch = torch.cat([u.reshape(-1, *shape) for u in updates])  # (N, rows, columns)
            batch = orthogonalise(batch.to(self.dtype))
            batch = batch.mul_(rate * max(1.0, shape[0] / shape[1]) ** 0.5)
            parts = batch.split([weight.numel() // (shape[0] * shape[1]) for weight in weights])
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1.0 - rate * group["weight_decay"])
            shapes = [weight.shape for weight in weights]
            torch._foreach_sub_(weights, list(map(torch.Tensor.reshape, parts, shapes)))

    def _buffer(self, weight: torch.Tensor) -> torch.Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]


def orthogonalise(matrices: torch.Tensor, steps: int = 4) -> torch.Tensor:
    """Near-orthogonal matrices with the same singular vectors: (N, rows, columns) -> the same.

    A quintic Newton-Schulz iteration, X <- a X + (b A + c A^2) X with A = X X^T. With the
    coefficients of Jordan, four steps bring singular values above 1% of the norm into [0.68, 1.21].
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
