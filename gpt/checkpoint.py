"""Checkpoints: tensors in safetensors, the rest in json, never pickle; whole or not there.

A checkpoint NAME is `NAME.json`, which names its tensor files and their sha256. The tensor files
are written first, under names that no checkpoint uses yet; renaming the json is the moment when
the new checkpoint takes the place of the old one, and only then are old tensor files removed.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gpt import Refused

VERSION = 1


def save(folder: Path, name: str, tensors: dict[str, dict[str, torch.Tensor]], record: dict):
    """Write checkpoint `name` of `tensors` = {"weights": {...}, "optimizer": {...}} and `record`.

    `record` is plain json and holds at least "step". Raises `Refused` when the disk is full or
    cannot be written; the checkpoint that stood under the name is then as it was.
    """
    files = {}
    written = []
    try:
        for kind, group in tensors.items():
            path = folder / f"{name}-{record['step']:07d}.{kind}.safetensors"
            partial = path.with_suffix(f".{os.getpid()}.partial")
            written += [partial]
            save_file({key: tensor.contiguous() for key, tensor in group.items()}, partial)
            _flush(partial)
            files[kind] = {"name": path.name, "sha256": sha256(partial)}
            partial.replace(path)
        write_json(folder / f"{name}.json", {"version": VERSION, **record, "files": files})
    except (OSError, SafetensorError) as error:
        for path in written:
            path.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise Refused(
            f"the checkpoint could not be saved to {folder} ({reason}); "
            "the one before it is whole, go on from it with --resume when there is room"
        ) from None
    keep = {file["name"] for file in files.values()}
    for path in folder.glob(f"{name}-*.safetensors"):
        if path.name not in keep:
            path.unlink(missing_ok=True)


def load(folder: Path, name: str, kinds: tuple[str, ...] = ("weights",)):
    """The record of checkpoint `name` and the tensors of `kinds`, as `save` got them.

    Raises `Refused` for a checkpoint that is missing, damaged, or of another version.
    """
    record = read_json(folder / f"{name}.json")
    if record.get("version") != VERSION:
        raise Refused(
            f"{folder / name}.json has version {record.get('version')!r}, and this program reads "
            f"version {VERSION}"
        )
    tensors = {}
    for kind in kinds:
        try:
            file = record["files"][kind]
            path, expected = folder / Path(file["name"]).name, file["sha256"]
        except (KeyError, TypeError):
            raise Refused(f"{folder / name}.json names no {kind}; it is damaged") from None
        if not path.is_file():
            raise Refused(f"{path} is missing, though {name}.json names it")
        if sha256(path) != expected:
            raise Refused(f"{path} is damaged: its sha256 is not the one in {name}.json")
        try:
            tensors[kind] = load_file(path)
        except SafetensorError as error:
            raise Refused(f"{path} is no safetensors file: {error}") from None
    return record, tensors


def write_json(path: Path, record: dict) -> None:
    """Write `record` so that the file is the old one or the new one, whole, at every moment."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)  # the new name itself
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict:
    """A json object, or `Refused`."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused(f"{path} does not exist; is there a run in {path.parent}?") from None
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise Refused(f"{path} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise Refused(f"{path} is not a JSON object")
    return record


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def optimizer_tensors(optimizers, model) -> dict[str, torch.Tensor]:
    """The optimizers' state as "NUMBER/PARAMETER/KEY" -> tensor."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{number}/{names[id(parameter)]}/{key}": value
        for number, optimizer in enumerate(optimizers)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(optimizers, model, tensors: dict[str, torch.Tensor]) -> None:
    """Set the state that `optimizer_tensors` gave; `Refused` when it is another model's."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    left = dict(tensors)
    for number, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        order = [p for group in optimizer.param_groups for p in group["params"]]
        whole["state"] = {}
        for index, parameter in enumerate(order):
            prefix = f"{number}/{names[id(parameter)]}/"
            mine = [key for key in left if key.startswith(prefix)]
            state = {key.removeprefix(prefix): left.pop(key) for key in mine}
            for key, value in state.items():
                if value.dim() and value.shape != parameter.shape:
                    raise Refused(f"the optimizer's {key} of {prefix} has another shape")
            if state:
                whole["state"][index] = state
        optimizer.load_state_dict(whole)
    if left:
        raise Refused(
            f"the optimizer's state has {next(iter(left))}, which this model has not; "
            "resume with the --kernels and --optimizer of the run"
        )
