"""Weights of one model as weights of another: lecture <-> fused, both ways, bit-equal.

The lecture keeps key, query and value of each head apart; the fused model keeps one matrix with
rows [query | key | value], each the heads side by side. Everything else is a change of name.
"""

import re

import torch

_RENAMED = (("ffwd.net.0.", "ffwd.up."), ("ffwd.net.2.", "ffwd.down."))
_HEAD = re.compile(r"(blocks\.\d+\.sa)\.heads\.(\d+)\.(query|key|value)\.(weight|bias)")
_PARTS = ("query", "key", "value")  # the order of the rows of the packed matrix

State = dict[str, torch.Tensor]


def fused_from_lecture(lecture: State) -> State:
    """The state dict of `gpt.model.GPT` from that of `gpt.reference.GPT` or the lecture's file."""
    fused: State = {}
    parts: dict[str, dict[tuple[int, int], torch.Tensor]] = {}
    for name, tensor in lecture.items():
        if name.endswith(".tril"):
            continue  # the causal mask is a constant of the lecture's Head, not a weight
        if match := _HEAD.fullmatch(name):
            attention, head, part, kind = match.groups()
            packed = parts.setdefault(f"{attention}.qkv.{kind}", {})
            packed[_PARTS.index(part), int(head)] = tensor  # (D, C) or (D,)
        else:
            fused[_rename(name, _RENAMED)] = tensor
    for name, heads in parts.items():
        fused[name] = torch.cat([heads[key] for key in sorted(heads)])  # (3C, C) or (3C,)
    return fused


def lecture_from_fused(fused: State, n_head: int, block_size: int) -> State:
    """The state dict of `gpt.reference.GPT`, the causal masks included, from the fused one."""
    lecture: State = {}
    for name, tensor in fused.items():
        if ".sa.qkv." in name:
            attention, kind = name.split(".qkv.")
            heads = tensor.view(3, n_head, -1, *tensor.shape[1:])  # (3, H, D, C) or (3, H, D)
            for part, part_heads in zip(_PARTS, heads, strict=True):
                for head, weight in enumerate(part_heads):
                    lecture[f"{attention}.heads.{head}.{part}.{kind}"] = weight.clone()
                    mask = torch.tril(torch.ones(block_size, block_size, device=tensor.device))
                    lecture[f"{attention}.heads.{head}.tril"] = mask
        else:
            lecture[_rename(name, [(new, old) for old, new in _RENAMED])] = tensor
    return lecture


def _rename(name: str, pairs) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name
