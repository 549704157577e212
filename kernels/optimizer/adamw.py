"""AdamW over all parameters in one launch, with every changing number read on the device.

With gradient g, step t and the max_norm of `clip_grad_norm` (Loshchilov and Hutter 2019,
"Decoupled weight decay regularization"):

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
- State is fp32. A 16-bit parameter is the rounded copy of an fp32 master in its state. The update
  reads both: where the parameter is not what the master rounds to, it was written by someone else,
  and the update starts from it. An fp32 parameter may have a 16-bit copy (`follow`) that takes part
  in forward and backward instead: the step reads the gradient of the copy, and rounds the parameter
  to it.
- The norm is a partial sum per chunk, and one program adds these: no atomics, and a count and an
  order that depend only on the parameters. Clipping does not rewrite gradients: the step scales
  them as it reads them.
"""

import math
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
    """`torch.optim.AdamW` in one launch, with the same groups, state and state_dict.

    Loshchilov and Hutter 2019, "Decoupled weight decay regularization".

    Args:
        params: tensors, (name, tensor) pairs such as `model.named_parameters()`, or groups: dicts
            of "params" and of options that differ from those below. The tensors are contiguous, on
            one device, and fp16, bf16, fp32 or fp64, which may be mixed.
        lr: the learning rate, a number or a tensor of one element; the host waits for a tensor on a
            GPU. It may change at any time, as all options in `param_groups` may.
        betas: the decay rates of the two moments.
        eps: what is added to the root of the second moment.
        weight_decay: the decay rate of the parameters, relative to `lr`.
        amsgrad: must be False.
        maximize: ascend the gradient instead of descending it.

    Raises ValueError for an option that is out of range or not supported. State dicts of
    `torch.optim.AdamW` can be loaded, and load into it; its `foreach`, `fused` and `capturable`
    have no effect here.

    A 16-bit parameter has an fp32 "master" in its state, of which it is the rounded copy. Values
    written to the parameter, for example by its module's `load_state_dict`, replace its master in
    the next step; those that the master rounds to leave it as it is.
    """

    # () on the device, as in PyTorch's: the step is skipped if it is not 0
    found_inf: torch.Tensor | None = None
    _tables: list["_Tensors"] | None = None

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        maximize: bool = False,
    ):
        self._factor: torch.Tensor | None = None
        self._copies: dict[torch.Tensor, torch.Tensor] = {}
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"amsgrad": amsgrad, "maximize": maximize})

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds; a copy makes its own tables."""
        return super().__getstate__() | {"_factor": self._factor, "_copies": self._copies}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _check_options(self.defaults | param_group)
        super().add_param_group(param_group)
        self._tables = None  # rebuilt by the next `send`

    @torch._disable_dynamo  # without importing the compiler, as `torch.compiler.disable` would
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient; return what `closure`, called first, returns.

        Raises ValueError for gradients that are sparse or do not fit their parameter.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for tensors in self.send():
            tensors.update(self._hyper.tensor, self._factor, self.found_inf)
        self._factor = None
        return loss

    @torch._disable_dynamo
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
        self._hyper.send([_hyperparameters(group) for group in self.param_groups])
        for tensors in tables:
            tensors.send(self.state)
        return tables

    def follow(self, copies: dict[torch.Tensor, torch.Tensor]) -> None:
        """Take the gradient of a parameter from its copy, and round the parameter to it every step.

        copies: fp32 parameter -> a contiguous 16-bit tensor of its shape that requires a gradient.
        State and state_dict remain those of the parameters. Whoever writes to a parameter writes to
        its copy as well: what is written to the copy alone is lost in the next step.
        """
        self._copies, self._tables = copies, None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class or of `torch.optim.AdamW`. Raises ValueError as above."""
        groups = state_dict["param_groups"]
        for group in groups:
            _check_options(group)
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["lr"] = float(group["lr"])  # a tensor on a GPU would be waited for at every step
        # PyTorch rounds the state to the dtype of the parameters: load it as it was saved
        saved = (index for group in groups for index in group["params"])
        for parameter, index in zip(self._parameters(), saved, strict=True):
            if index not in state_dict["state"]:
                continue
            wide = accumulator(parameter.dtype)
            self.state[parameter] = {
                key: value.to(parameter.device, torch.float32 if key == "step" else wide, copy=True)
                for key, value in state_dict["state"][index].items()
            }

    def _parameters(self):
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _make_tables(self) -> list["_Tensors"]:
        parameters = self._parameters()
        device = parameters[0].device if parameters else torch.device("cpu")
        by_kind: dict[tuple[torch.dtype, bool], list] = {}
        count = 0  # of chunks, each with a partial sum of the norm
        for index, group in enumerate(self.param_groups):
            for p in group["params"]:
                if p.dtype not in DTYPES or p.device != device or not p.is_contiguous():
                    raise ValueError(
                        f"AdamW: a parameter of shape {tuple(p.shape)} and strides {p.stride()} is "
                        f"{p.dtype} on {p.device}; give contiguous floating-point ones on {device}"
                    )
                copy = self._copies.get(p, p)
                kind = copy.dtype, copy is not p
                by_kind.setdefault(kind, []).append((p, copy, index, count))
                count += cdiv(p.numel(), multi_tensor.CHUNK)
        self._hyper = multi_tensor.Sent(torch.float64, device)
        tables = [_Tensors(*zip(*some, strict=True)) for some in by_kind.values()]
        is_wide = any(tensors.wide == torch.float64 for tensors in tables)
        wide = torch.float64 if is_wide else torch.float32
        count += -count % 16  # padded with zeros to whole vectors for `adamw_clip_kernel`
        self._partials = torch.zeros(count, dtype=wide, device=device)
        return tables


class _Tensors:
    """The parameters, or their copies, of one dtype, and their tables on the device."""

    def __init__(self, parameters, copies, groups, first):
        self.dtype, self.device = dtype, device = copies[0].dtype, parameters[0].device
        self.parameters, self.copies = parameters, copies
        self.shapes = [parameter.shape for parameter in parameters]
        self.wide = accumulator(dtype)
        self.follows = copies[0] is not parameters[0]
        self.chunks = multi_tensor.chunks([shape.numel() for shape in self.shapes], device)
        self.groups = torch.tensor(groups, dtype=torch.int32, device=device)  # (tensors,)
        self.first = torch.tensor(first, dtype=torch.int32, device=device)  # (tensors,)
        shape = len(parameters), COEFFICIENTS.value
        self.coefficients = torch.empty(shape, dtype=torch.float64, device=device)
        self.addresses = multi_tensor.Sent(torch.int64, device)  # (tensors, ADDRESSES)
        self.options: dict[str, Any] = {"DTYPE": DTYPES[dtype], "ACC": DTYPES[self.wide]}
        self.options |= {"CHUNK": multi_tensor.CHUNK, "VECTOR": multi_tensor.VECTOR, "num_warps": 8}

    def send(self, state):
        pairs = zip(self.parameters, self.copies, strict=True)
        operands = [_operands(parameter, copy, state) for parameter, copy in pairs]
        rows = [[x.data_ptr() for x in row] or [0] * ADDRESSES.value for row in operands]
        if self.addresses.send(rows):
            self._check(operands)
            aligned = not any(address % multi_tensor.WIDE for row in rows for address in row[:-1])
            self.options["ALIGNED"] = multi_tensor.WIDE if aligned else 1

    def _check(self, operands):
        """Raise ValueError for a tensor that the kernels would read or write as another kind."""
        names = "parameter", "gradient", "exp_avg", "exp_avg_sq", "master", "step"
        dtypes = self.dtype, self.dtype, self.wide, self.wide, self.wide, torch.float32
        for row, shape in zip(operands, self.shapes, strict=True):
            for name, dtype, x in zip(names, dtypes, row, strict=False):  # or no row
                expected = dtype, self.device, shape if name != "step" else ()
                if (x.dtype, x.device, x.shape) != expected or not x.is_contiguous():
                    self.addresses.rows = None  # checked again at the next `send`
                    raise ValueError(
                        f"AdamW: the {name} is {x.dtype} of shape {tuple(x.shape)} on {x.device}; "
                        f"give a contiguous one of {dtype} and shape {tuple(expected[2])} on "
                        f"{self.device}"
                    )

    def sum_squares(self, partials):
        tensors = self.chunks, self.addresses.tensor, self.first, partials
        launch(adamw_square_sum_kernel, (len(self.chunks),), *tensors, **self.options)

    def update(self, hyper, factor, found_inf):
        tensors = self.addresses.tensor, self.groups, hyper, self.coefficients, found_inf
        launch(adamw_advance_kernel, (len(self.parameters),), *tensors, num_warps=1)
        tensors = self.chunks, self.addresses.tensor, self.coefficients, factor, found_inf
        options = self.options | {"FOLLOWS": self.follows}
        launch(adamw_update_kernel, (len(self.chunks),), *tensors, **options)


def _operands(parameter, copy, state):
    """The tensors of a row of the table of addresses, or none if there is no gradient.

    `copy` is the parameter itself unless it has a copy.
    """
    gradient = copy.grad
    if gradient is None:
        return ()
    if gradient.layout != torch.strided:
        raise ValueError(
            f"AdamW: the gradient of a parameter of shape {tuple(parameter.shape)} has the layout "
            f"{gradient.layout}; give dense gradients"
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
    master = mine.get("master", parameter)
    return copy, gradient, mine["exp_avg"], mine["exp_avg_sq"], master, mine["step"]


def _check_options(group: dict[str, Any]) -> None:
    """Raise ValueError for options of a group that are out of range or not supported."""
    for name in ("lr", "eps", "weight_decay"):
        if not 0 <= group[name] < math.inf:  # false for NaN
            raise ValueError(f"AdamW: {name} is {group[name]}; give a finite number of at least 0")
    if len(group["betas"]) != 2 or not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"AdamW: betas is {group['betas']}; give two numbers in [0, 1)")
    for name in ("amsgrad", "differentiable"):
        if group.get(name):
            raise ValueError(f"AdamW: {name} is not supported; use torch.optim.AdamW for it")


def _hyperparameters(group: dict[str, Any]) -> list[float]:
    """A row of the table of hyperparameters."""
    options = group["lr"], *group["betas"], group["eps"], group["weight_decay"]
    return [*map(float, options), float(group.get("maximize", False))]
