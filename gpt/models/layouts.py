"""Convert weights between the lecture's layout and the packed one, bit for bit.

The lecture has separate key, query and value matrices for each head; the packed model has one
matrix with rows [query | key | value], each with all heads one below the other. A key that several
heads share is stored once there, and under the name of each head in the lecture's layout.
Everything else is a change of name. A state dict that does not fit the config is rejected first.
"""

import torch

from .. import UserError
from ..config.model import ModelConfig
from . import reference
from .packed import GPT

_RENAMED = {"ffwd.up.": "ffwd.net.0.", "ffwd.down.": "ffwd.net.2."}
_PARTS = ("query", "key", "value")  # the order of the rows of the packed matrix

State = dict[str, torch.Tensor]


def packed_from_lecture(lecture: State, config: ModelConfig) -> State:
    """The state dict of `packed.GPT` from that of `reference.GPT` or of the lecture's file."""
    lecture = _without_masks(lecture)
    with torch.device("meta"):
        check_layout(_without_masks(reference.GPT(config).state_dict()), lecture)
        names = GPT(config, ops=None).state_dict()
    packed: State = {}
    for name in names:
        if ".qkv." in name:
            attention, kind = name.split(".qkv.")
            heads = [
                lecture[f"{attention}.heads.{head}.{part}.{kind}"]  # (D, C) or (D,)
                for part, count in zip(_PARTS, config.head_counts, strict=True)
                for head in range(0, config.n_head, config.n_head // count)
            ]
            packed[name] = torch.cat(heads)  # (rows, C) or (rows,)
        else:
            packed[name] = lecture[rename(name, _RENAMED)]
    return packed


def lecture_from_packed(packed: State, config: ModelConfig) -> State:
    """The state dict of `reference.GPT`, causal masks included, from that of `packed.GPT`."""
    with torch.device("meta"):
        check_layout(GPT(config, ops=None).state_dict(), packed)
    lecture: State = {}
    for name, tensor in packed.items():
        if ".qkv." in name:
            attention, kind = name.split(".qkv.")
            heads = tensor.unflatten(0, (sum(config.head_counts), -1))  # of (D, C) or (D,) each
            for part, weights in zip(_PARTS, heads.split(config.head_counts), strict=True):
                group = config.n_head // len(weights)
                for head in range(config.n_head):
                    weight = weights[head // group].clone()
                    lecture[f"{attention}.heads.{head}.{part}.{kind}"] = weight
            mask = torch.ones(config.block_size, config.block_size, device=tensor.device).tril()
            lecture |= {f"{attention}.heads.{head}.tril": mask for head in range(config.n_head)}
        else:
            lecture[rename(name, _RENAMED)] = tensor
    return lecture


def check_layout(expected: State, state: State) -> None:
    """Raise UserError for a state dict whose names or shapes are not those of `expected`."""
    hint = "the config must be that of the saved model"
    for name in (*expected, *state):
        if name not in state:
            raise UserError(f"weights: {name!r} is missing from the state dict; {hint}")
        if name not in expected:
            raise UserError(f"weights: the model has no {name!r}; {hint}")
        shape, right = tuple(state[name].shape), tuple(expected[name].shape)
        if shape != right:
            raise UserError(
                f"weights: {name!r} has shape {shape}, and the model expects {right}; {hint}"
            )


def _without_masks(state: State) -> State:
    """Drop the buffers `tril`, which are constants of the lecture's Head and not weights."""
    return {name: tensor for name, tensor in state.items() if not name.endswith(".tril")}


def rename(name: str, parts: dict[str, str]) -> str:
    """The name with each part of the table replaced."""
    for old, new in parts.items():
        name = name.replace(old, new)
    return name
