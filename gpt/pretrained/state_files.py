"""State dicts in anyone's files: safetensors or `torch.save`'s, whole or in shards.

A file from a stranger may be damaged or hostile: no code in it is run, what it claims to hold is
compared with its size, and an index cannot name a file of another folder.
"""

import re
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file

from .. import UserError
from ..files import read_json
from ..models.layouts import State

WHOLE, SHARDED = ("model.safetensors", "pytorch_model.bin"), ".index.json"  # of transformers
NESTED = ("model", "state_dict", "model_state_dict")  # where a checkpoint keeps its state dict
MASKS = re.compile(r"(.+\.)?(tril|attn\.(masked_)?bias)")  # of the lecture, nanoGPT and GPT-2
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module)\.")


def find_weights(path: Path) -> Path | None:
    """The file of weights, or the index of their shards, that a path is or a folder has."""
    names = (*(name + end for name in WHOLE for end in ("", SHARDED)), "ckpt.pt")
    paths = (path, *(path / name for name in names))
    return next((each for each in paths if each.is_file()), None)


def read_shards(path: Path) -> State:
    """The state dict of a file, or of all files that an index names; raises UserError."""
    if not path.name.endswith(SHARDED):
        return state_of(read_content(path), path)
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{path} has no weight_map from tensors to files; it is damaged")
    state: State = {}
    for name in sorted(set(names.values())):
        file = path.parent / name
        if Path(name).name != name or not file.is_file():
            raise UserError(f"{path} names {name!r:.80}, which is not a file in the same folder")
        shard = state_of(read_content(file), file)
        if twice := state.keys() & shard.keys():
            raise UserError(f"{path} has {min(twice)!r:.80} in two files; it is damaged")
        state |= shard
    return state


def read_content(path: Path) -> Any:
    """What a file holds: tensors and plain values; raises UserError if it holds anything else."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception:  # the libraries raise many classes for a damaged file
        problem = f"{path} is damaged, or holds more than tensors and plain values"
        raise UserError(f"{problem}; save a state_dict() by torch.save or safetensors") from None


def state_of(content: Any, path: Path) -> State:
    """The weights in the file `path` by name, without masks and the prefixes of wrappers.

    They may lie inside of the dict of a checkpoint. Raises UserError if there are none.
    """
    for name in NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} is not a state dict")
    state: State = {}
    for name, tensor in content.items():
        short = WRAPPERS.sub("", name) if isinstance(name, str) else ""
        if MASKS.fullmatch(short) and getattr(tensor, "ndim", 1) != 1:
            continue
        is_tensor = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        is_weight = is_tensor and tensor.is_floating_point() and not tensor.is_meta
        if not short or short in state or not is_weight:
            raise UserError(f"{path} is not a state dict of weights: it has {name!r:.80}")
        state[short] = tensor.detach()
    # a tied weight may have two names
    if sum(tensor.nbytes for tensor in state.values()) > 2 * path.stat().st_size:
        raise UserError(f"{path} claims more values than it holds; it is damaged")
    return state
