"""The state of a run's optimizers as named tensors, and back."""

from collections.abc import Sequence

import torch
import torch.nn as nn

from gpt import UserError
from gpt.training import distributed
from gpt.training.muon import Muon

ADAMW_STATE, MUON_STATE = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)


def optimizer_tensors(
    optimizers: Sequence[torch.optim.Optimizer], model: nn.Module
) -> dict[str, torch.Tensor]:
    """The optimizers' state as "NUMBER/PARAMETER/KEY" -> tensor."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {
        f"{number}/{names[id(parameter)]}/{key}": value
        for number, optimizer in enumerate(optimizers)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    return distributed.full_on_main(tensors)


def load_optimizer_tensors(
    optimizers: Sequence[torch.optim.Optimizer], model: nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """Restore what `optimizer_tensors` returned. Raises UserError if it is another model's."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    left = dict(tensors)
    for number, optimizer in enumerate(optimizers):
        keys = MUON_STATE if isinstance(optimizer, Muon) else ADAMW_STATE
        whole = optimizer.state_dict()
        order = [p for group in optimizer.param_groups for p in group["params"]]
        whole["state"] = {}
        for index, parameter in enumerate(order):
            prefix = f"{number}/{names[id(parameter)]}/"
            state = {key: left.pop(prefix + key) for key in keys if prefix + key in left}
            if not state:
                continue  # saved before the first update
            shapes = {key: () if key == "step" else parameter.shape for key in keys}
            if {key: value.shape for key, value in state.items()} != shapes:
                raise UserError(f"the optimizer state {prefix} does not fit this model's parameter")
            whole["state"][index] = {
                key: value if key == "step" else distributed.shard_like(value, parameter)
                for key, value in state.items()
            }
        optimizer.load_state_dict(whole)
    if left:
        raise UserError(
            f"the checkpoint has the optimizer state {next(iter(left))}, but this model does not; "
            "resume with the run's --kernels and --optimizer"
        )
