"""AdamW over all parameters in one launch, with every changing number read on the device.

With gradient g, step t and the max_norm of `clip_grad_norm` (Loshchilov and Hutter 2019):

    g <- g min(1, max_norm / (norm + 1e-6))
    p <- p (1 - lr decay)
    m <- m + (1 - beta1) (g - m)              v <- beta2 v + (1 - beta2) g^2
    p <- p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

Decisions:
- A program updates a chunk of one tensor, found through tables of addresses (`multi_tensor.py`).
  Parameters that are views of one flat buffer would need no tables, but would conflict with the
  model, with DDP and with code that sets `.grad` to None. Addresses are compared at every step and
  sent, without waiting, if one has changed.
- Steps, learning rates and the clipping factor are on the device, so that a CUDA graph replays
  current values. Coefficients are computed in fp64: in fp32, 1 - 0.999 loses three digits.
- State is fp32. A 16-bit parameter is the rounded copy of an fp32 master in its state. An fp32
  parameter may have a 16-bit copy (`follow`) that takes part in forward and backward instead: the
  step reads the gradient of the copy, and rounds the parameter to it.
- The norm is a partial sum per chunk, and one program adds these: no atomics, and a count and an
  order that depend only on the parameters. Clipping does not rewrite gradients: the step scales
  them as it reads them.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import triton.language as tl

from ..common.dtypes import accumulator
from ..common.launch import cdiv, launch
from . import multi_tensor
from .adamw_kernels import (
    ADDRESSES,
    COEFFICIENTS,
    adamw_advance_kernel,
    adamw_clip_kernel,
    adamw_square_sum_kernel,
    adamw_update_kernel,
)

PARTIALS = 8192  # partial sums that `adamw_clip_kernel` adds at once
DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


class AdamW(torch.optim.Optimizer):
    """`torch.optim.AdamW` in one launch, with the same groups, state and state_dict."""

    # () on the device, as in PyTorch's: the step is skipped if it is not 0
    found_inf: torch.Tensor | None = None
    _tables: list["_Tensors"] | None = None

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        if min(lr, eps, weight_decay, *betas) < 0 or max(betas) >= 1:
            raise ValueError(
                f"AdamW: lr {lr}, eps {eps} and weight_decay {weight_decay} must not be negative, "
                f"and betas {tuple(betas)} must be in [0, 1)"
            )
        self._factor: torch.Tensor | None = None
        self._copies: dict[torch.Tensor, torch.Tensor] = {}
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._tables = None  # rebuilt by the next `send`

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for tensors in self.send():
            tensors.update(self._hyper.tensor, self._factor, self.found_inf)
        self._factor = None
        return loss

    @torch.no_grad()
    def clip_grad_norm(self, max_norm: float) -> torch.Tensor:
        """Return the norm () of all gradients; the next step scales it to at most `max_norm`."""
        for tensors in self.send():
            tensors.sum_squares(self._partials)
        norm = torch.empty((), dtype=self._partials.dtype, device=self._partials.device)
        self._factor = torch.empty_like(norm)
        operands = self._partials, norm, self._factor, len(self._partials), float(max_norm)
        launch(adamw_clip_kernel, (1,), *operands, PARTIALS=PARTIALS, num_warps=16)
        return norm

    @torch.no_grad()
    def send(self) -> list["_Tensors"]:
        """Send the hyperparameters and the addresses of the tensors to the device if they changed.

        `step` does this. Before a CUDA graph replays a step, call it explicitly.
        """
        tables = self._tables = self._make_tables() if self._tables is None else self._tables
        options = ("lr", "betas", "eps", "weight_decay")
        rows = [[group[name] for name in options] for group in self.param_groups]
        self._hyper.send([[lr, *betas, *others] for lr, betas, *others in rows])
        for tensors in tables:
            tensors.send(self.state)
        return tables

    def follow(self, copies: dict[torch.Tensor, torch.Tensor]) -> None:
        """Take the gradient of a parameter from its copy, and round the parameter to it every step.

        copies: fp32 parameter -> a contiguous 16-bit tensor of its shape that requires a gradient.
        State and state_dict remain those of the parameters.
        """
        self._copies, self._tables = copies, None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        groups = state_dict["param_groups"]
        if any(group.get("amsgrad") or group.get("maximize") for group in groups):
            raise ValueError("AdamW: amsgrad and maximize are not supported; train without")
        super().load_state_dict(state_dict)
        # PyTorch rounds the state to the dtype of the parameters: load it as it was saved
        saved = (index for group in groups for index in group["params"])
        for parameter, index in zip(self._parameters(), saved, strict=True):
            wide = accumulator(parameter.dtype)
            self.state[parameter] = {
                key: value.to(parameter.device, torch.float32 if key == "step" else wide, copy=True)
                for key, value in state_dict["state"].get(index, {}).items()
            }

    def _parameters(self):
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _make_tables(self) -> list["_Tensors"]:
        device = self._parameters()[0].device
        by_dtype: dict[torch.dtype, list] = {}
        count = 0  # of chunks, each with a partial sum of the norm
        for index, group in enumerate(self.param_groups):
            for p in group["params"]:
                if p.dtype not in DTYPES or p.device != device or not p.is_contiguous():
                    raise ValueError(
                        f"AdamW: a parameter of shape {tuple(p.shape)} and strides {p.stride()} is "
                        f"{p.dtype} on {p.device}; give contiguous floating-point ones on {device}"
                    )
                copy = self._copies.get(p, p)
                by_dtype.setdefault(copy.dtype, []).append((p, copy, index, count))
                count += cdiv(p.numel(), multi_tensor.CHUNK)
        self._hyper = multi_tensor.Sent(torch.float64, device)
        tables = [_Tensors(*zip(*some, strict=True)) for some in by_dtype.values()]
        wide = max((tensors.wide for tensors in tables), key=lambda dtype: dtype.itemsize)
        count += -count % 16  # padded with zeros to whole vectors for `adamw_clip_kernel`
        self._partials = torch.zeros(count, dtype=wide, device=device)
        return tables


class _Tensors:
    """The parameters of one dtype, and their tables on the device."""

    def __init__(self, parameters, copies, groups, first):
        dtype, device = copies[0].dtype, parameters[0].device
        self.parameters, self.copies = parameters, copies
        self.wide = accumulator(dtype)
        self.chunks = multi_tensor.chunks([parameter.numel() for parameter in parameters], device)
        self.groups = torch.tensor(groups, dtype=torch.int32, device=device)  # (tensors,)
        self.first = torch.tensor(first, dtype=torch.int32, device=device)  # (tensors,)
        shape = len(parameters), COEFFICIENTS.value
        self.coefficients = torch.empty(shape, dtype=torch.float64, device=device)
        self.addresses = multi_tensor.Sent(torch.int64, device)  # (tensors, ADDRESSES)
        self.options: dict[str, Any] = {"DTYPE": DTYPES[dtype], "ACC": DTYPES[self.wide]}
        self.options |= {"CHUNK": multi_tensor.CHUNK, "VECTOR": multi_tensor.VECTOR, "num_warps": 8}

    def send(self, state):
        pairs = zip(self.parameters, self.copies, strict=True)
        rows = [_addresses(parameter, copy, state) for parameter, copy in pairs]
        if self.addresses.send(rows):
            aligned = not any(address % multi_tensor.WIDE for row in rows for address in row[:-1])
            self.options["ALIGNED"] = multi_tensor.WIDE if aligned else 1

    def sum_squares(self, partials):
        tensors = self.chunks, self.addresses.tensor, self.first, partials
        launch(adamw_square_sum_kernel, (len(self.chunks),), *tensors, **self.options)

    def update(self, hyper, factor, found_inf):
        tensors = self.addresses.tensor, self.groups, hyper, self.coefficients, found_inf
        launch(adamw_advance_kernel, (len(self.parameters),), *tensors, num_warps=1)
        tensors = self.chunks, self.addresses.tensor, self.coefficients, factor, found_inf
        launch(adamw_update_kernel, (len(self.chunks),), *tensors, **self.options)


def _addresses(parameter, copy, state):
    """A row of the table of addresses; `copy` is the parameter itself unless it has a copy."""
    gradient = copy.grad
    if gradient is None:
        return [0] * ADDRESSES.value
    if gradient.dtype != copy.dtype or gradient.layout != torch.strided:
        raise ValueError(
            f"AdamW: a gradient is {gradient.dtype} with layout {gradient.layout}, its parameter "
            f"{copy.dtype}; give dense gradients of the parameter's dtype"
        )
    if not gradient.is_contiguous():
        gradient = copy.grad = gradient.contiguous()
    mine, wide = state[parameter], accumulator(parameter.dtype)
    if "step" not in mine:
        mine["step"] = torch.zeros((), device=parameter.device)
        mine["exp_avg"] = torch.zeros_like(parameter, dtype=wide)
        mine["exp_avg_sq"] = torch.zeros_like(parameter, dtype=wide)
    if parameter.dtype != wide and "master" not in mine:
        mine["master"] = parameter.to(wide)
    m, v, step = mine["exp_avg"], mine["exp_avg_sq"], mine["step"]
    tensors = copy, gradient, m, v, mine.get("master", parameter), step
    return [tensor.data_ptr() for tensor in tensors]
