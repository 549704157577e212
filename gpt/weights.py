"""Weights of one model as weights of another: lecture <-> fused, both ways, bit-equal.

The lecture keeps key, query and value of each head apart; the fused model keeps one matrix with
rows [query | key | value], each the heads side by side. A key that heads share stands there once,
and in the lecture's under the name of each. Everything else is a change of name. A state dict that
is not one of the config's model is refused before anything is made of it.
"""

import re
import sys
from pathlib import Path

import torch

from gpt import Refused, model, reference
from gpt.presets import ModelConfig

_RENAMED = (("ffwd.net.0.", "ffwd.up."), ("ffwd.net.2.", "ffwd.down."))
_HEAD = re.compile(r"(blocks\..*\.[sc]a)\.heads\.(\d+)\.(query|key|value)\.(weight|bias)")
_PARTS = ("query", "key", "value")  # the order of the rows of the packed matrix

State = dict[str, torch.Tensor]


def fused_from_lecture(lecture: State, config: ModelConfig) -> State:
    """The state dict of `gpt.model.GPT` from that of `gpt.reference.GPT` or the lecture's file."""
    lecture = _without_masks(lecture)
    with torch.device("meta"):
        refuse_unless_like(_without_masks(reference.GPT(config).state_dict()), lecture)
    group = config.n_head // config.head_counts[1]
    fused: State = {}
    parts: dict[str, dict[tuple[int, int], torch.Tensor]] = {}
    for name, tensor in lecture.items():
        if match := _HEAD.fullmatch(name):
            attention, head, part, kind = match.groups()
            packed = parts.setdefault(f"{attention}.qkv.{kind}", {})
            if part == "query" or int(head) % group == 0:
                packed[_PARTS.index(part), int(head)] = tensor  # (D, C) or (D,)
        else:
            fused[_rename(name, _RENAMED)] = tensor
    for name, heads in parts.items():
        fused[name] = torch.cat([heads[key] for key in sorted(heads)])  # (rows, C) or (rows,)
    return fused


def lecture_from_fused(fused: State, config: ModelConfig) -> State:
    """The state dict of `gpt.reference.GPT`, the causal masks included, from the fused one."""
    with torch.device("meta"):
        refuse_unless_like(model.GPT(config, ops=None).state_dict(), fused)
    lecture: State = {}
    for name, tensor in fused.items():
        if ".qkv." in name:
            attention, kind = name.split(".qkv.")
            heads = tensor.unflatten(0, (sum(config.head_counts), -1))  # of (D, C) or (D,) each
            for part, weights in zip(_PARTS, heads.split(config.head_counts), strict=True):
                group = config.n_head // len(weights)
                for head in range(config.n_head):
                    weight = weights[head // group].clone()
                    lecture[f"{attention}.heads.{head}.{part}.{kind}"] = weight
            for head in range(config.n_head):
                mask = torch.ones(config.block_size, config.block_size, device=tensor.device)
                lecture[f"{attention}.heads.{head}.tril"] = torch.tril(mask)
        else:
            lecture[_rename(name, [(new, old) for old, new in _RENAMED])] = tensor
    return lecture


def refuse_unless_like(expected: State, state: State) -> None:
    """Refuse a state dict whose names or shapes are not those of `expected`."""
    hint = "the config must be that of the model which was saved"
    for name, tensor in expected.items():
        if name not in state:
            raise Refused(f"weights: {name!r} is missing from the state dict; {hint}")
        if state[name].shape != tensor.shape:
            raise Refused(
                f"weights: {name!r} has shape {tuple(state[name].shape)} where the model has "
                f"{tuple(tensor.shape)}; {hint}"
            )
    for name in state:
        if name not in expected:
            raise Refused(f"weights: the model has no {name!r}; {hint}")


def _without_masks(state: State) -> State:
    """Without the buffers `tril`: a constant of the lecture's Head, not a weight."""
    return {name: tensor for name, tensor in state.items() if not name.endswith(".tril")}


def _rename(name: str, pairs) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name


def main(arguments: list[str]) -> int:
    """python -m gpt.weights export RUN FOLDER: the run's best model for `transformers`."""
    from gpt.gpt2 import export

    if len(arguments) != 3 or arguments[0] != "export":
        print(main.__doc__, file=sys.stderr)
        return 2
    try:
        export(Path(arguments[1]), Path(arguments[2]))
    except (Refused, OSError) as error:
        print(f"gpt.weights: {error}", file=sys.stderr)
        return 2
    print(f"written to {arguments[2]}: GPT2LMHeadModel.from_pretrained({arguments[2]!r})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
