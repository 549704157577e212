"""State dicts in anyone's files: safetensors or `torch.save`'s.

A file from a stranger may be damaged or hostile: no code in it is run, what it claims to hold is
compared with its size, and the memory that is allocated for it is limited.
"""

import contextlib
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch

from .. import UserError
from ..models.layouts import State
from ..runs.checkpoint import load_tensors

NAMES = ("model.safetensors", "pytorch_model.bin", "ckpt.pt")  # of transformers and of nanoGPT
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SPARE = 1 << 29  # bytes that torch.load may take besides some copies of what is in the file
NESTED = ("model", "state_dict", "model_state_dict")  # where a checkpoint keeps its state dict
MASKS = re.compile(r"(.+\.)?(tril|attn\.(masked_)?bias)")  # of the lecture, nanoGPT and GPT-2
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module)\.")


def find_weights(path: Path) -> Path | None:
    """The file of weights that a path is or a folder has."""
    paths = (path, *(path / name for name in NAMES))
    return next((each for each in paths if each.is_file()), None)


def read_content(path: Path) -> Any:
    """What a file holds: tensors and plain values; raises UserError if it holds anything else."""
    try:
        if path.suffix == ".safetensors":
            return load_tensors(path)
        size, is_zip = path.stat().st_size, is_zipfile(path)
        if is_zip:
            with ZipFile(path) as file:
                entries = file.infolist()
            if sum(entry.file_size for entry in entries) > size:
                raise ValueError("its entries are compressed, which torch.save never does")
        with little_memory(4 * size + SPARE):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception:  # the libraries raise many classes for a damaged file
        problem = f"{path} is damaged, or holds more than tensors and plain values"
        raise UserError(f"{problem}; save a state_dict() by torch.save or safetensors") from None


@contextlib.contextmanager
def little_memory(size: int) -> Iterator[None]:
    """A context in which this process cannot allocate more than `size` bytes; on Linux alone."""
    statm, (soft, hard) = Path("/proc/self/statm"), resource.getrlimit(resource.RLIMIT_AS)
    if not statm.exists():
        yield
        return
    limit = size + int(statm.read_text().split()[0]) * resource.getpagesize()
    allowed = [each for each in (soft, hard, limit) if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(allowed), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


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
        is_weight = is_tensor and tensor.dtype in FLOATS and not tensor.is_meta | tensor.is_nested
        if not short or short in state or not is_weight:
            raise UserError(f"{path} is not a state dict of weights: it has {name!r:.80}")
        state[short] = tensor.detach()
    # a tied weight may have two names
    if sum(tensor.nbytes for tensor in state.values()) > 2 * path.stat().st_size:
        raise UserError(f"{path} claims more values than it holds; it is damaged")
    return state
