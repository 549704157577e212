"""Checkpoints: tensors in safetensors, the rest in json, never pickle; whole or not there.

A checkpoint NAME is `NAME.json`: its record, a sha256 of that record, and name and sha256 of each
of its tensor files, which several checkpoints may share. Tensor files are written first, under
names that no other content ever has; renaming the json is the moment when the new checkpoint takes
the place of the old one; only then are tensor files removed that no checkpoint names any more.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gpt import UserError
from gpt.training import distributed
from gpt.training.optimizers import Muon

VERSION = 1
LARGEST_JSON = 1 << 26  # bytes; a record is some hundred lines and a vocabulary
TENSOR_FILE = re.compile(r"\d{7,}\.[0-9a-f]{16}\.\w+\.safetensors")  # step, sha256, kind
ADAMW_STATE, MUON_STATE = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)

Tensors = dict[str, torch.Tensor]


def save(
    folder: Path,
    names: dict[str, Iterable[str]],
    tensors: dict[str, Tensors],
    record: dict,
    forget: Iterable[str] = (),
) -> None:
    """Write `tensors` = {KIND: {...}} and `record` as checkpoints: {NAME: its kinds}, in order.

    `record` is plain json and holds at least "step". The checkpoints named in `forget` are then
    removed. Raises `UserError` when the disk is full or cannot be written; every checkpoint is then
    the old one or the new one, whole.
    """
    try:
        files = {kind: _write_tensors(folder, kind, tensors[kind], record) for kind in tensors}
        _flush(folder)  # the files' names, before a json that relies on them
        for name, kinds in names.items():
            whole = {"version": VERSION, **record, "files": {kind: files[kind] for kind in kinds}}
            write_json(folder / f"{name}.json", {**whole, "sha256": _sha256_of_record(whole)})
        for name in forget:
            (folder / f"{name}.json").unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"the checkpoint of step {record['step']} could not be saved to {folder} ({reason}); "
            "the one before it is whole, go on from it with --resume when there is room"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            _remove_unnamed(folder)


def load(folder: Path, name: str, kinds: Iterable[str] = ("weights",)):
    """The record of checkpoint `name` and the tensors of `kinds`, as `save` got them.

    Raises `UserError` for a checkpoint that is missing, damaged, or of another version. A train.py
    may be at work in the folder.
    """
    path = folder / f"{name}.json"
    while True:
        record = _read_record(path)
        try:
            return record, {kind: _read_tensors(path, record, kind) for kind in kinds}
        except FileNotFoundError as error:
            if _read_record(path) == record:
                raise UserError(f"{error} is missing, though {path} names it") from None
            # the checkpoint was replaced meanwhile: read the new one


def remove_partial(folder: Path) -> None:
    """Remove what a process that was killed in the middle of a file has left."""
    for path in folder.glob("*.partial"):
        path.unlink(missing_ok=True)


def _remove_unnamed(folder: Path) -> None:
    """Remove the tensor files that no checkpoint of the folder names."""
    named = set()
    for path in folder.glob("*.json"):
        try:
            files = read_json(path).get("files", {})
            named |= {file["name"] for file in files.values()}
        except (UserError, AttributeError, TypeError, KeyError):
            return  # of a damaged checkpoint nothing is thrown away
    for path in folder.glob("*.safetensors"):
        if TENSOR_FILE.fullmatch(path.name) and path.name not in named:
            path.unlink(missing_ok=True)


def _write_tensors(folder: Path, kind: str, tensors: Tensors, record: dict) -> dict:
    partial = folder / f"{kind}.{os.getpid()}.partial"
    try:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial)
        _flush(partial)
        digest = _sha256_of_file(partial)
        # the same name only for the same content: a file that a checkpoint relies on never changes
        path = folder / f"{record['step']:07d}.{digest[:16]}.{kind}.safetensors"
        os.replace(partial, path)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    return {"name": path.name, "sha256": digest}


def _read_record(path: Path) -> dict:
    record = read_json(path)
    version, expected = record.get("version"), record.pop("sha256", None)
    if version != VERSION:
        raise UserError(f"{path} has version {version!r}, and this program reads version {VERSION}")
    if _sha256_of_record(record) != expected:
        raise UserError(f"{path} is damaged: its sha256 is not that of its content")
    return record


def _read_tensors(path: Path, record: dict, kind: str) -> Tensors:
    try:
        name, expected = record["files"][kind]["name"], record["files"][kind]["sha256"]
    except (KeyError, TypeError):
        raise UserError(
            f"{path} names no {kind}; it is damaged, or no checkpoint of that"
        ) from None
    if not isinstance(name, str) or not TENSOR_FILE.fullmatch(name):
        raise UserError(f"{path} names {name!r}, which is no tensor file of its own folder")
    tensor_path = path.parent / name
    try:
        if not stat.S_ISREG(tensor_path.stat().st_mode):
            raise UserError(f"{tensor_path} is no file")
        if _sha256_of_file(tensor_path) != expected:
            raise UserError(f"{tensor_path} is damaged: its sha256 is not the one in {path.name}")
        return load_file(tensor_path)
    except FileNotFoundError:
        raise FileNotFoundError(str(tensor_path)) from None
    except OSError as error:
        raise UserError(f"{tensor_path} cannot be read: {error.strerror}") from None
    except SafetensorError as error:
        raise UserError(f"{tensor_path} is no safetensors file: {error}") from None


def write_json(path: Path, record: dict) -> None:
    """Write `record`; see `write_whole`."""
    write_whole(path, (json.dumps(record, indent=1) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is the old one or the new one, whole, at every moment."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)  # the new name itself
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict:
    """A json object, or `UserError`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_JSON:
            raise UserError(f"{path} is no file of at most {LARGEST_JSON >> 20} MiB")
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; is there a run in {path.parent}?") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise UserError(f"{path} is not a JSON object")
    return record


def _sha256_of_record(record: dict) -> str:
    """Of a record as it is in json, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _sha256_of_file(path: Path) -> str:
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


def optimizer_tensors(optimizers, model) -> Tensors:
    """The optimizers' state as "NUMBER/PARAMETER/KEY" -> tensor."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {
        f"{number}/{names[id(parameter)]}/{key}": value
        for number, optimizer in enumerate(optimizers)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    return distributed.whole_on_main(tensors)


def load_optimizer_tensors(optimizers, model, tensors: Tensors) -> None:
    """Set the state that `optimizer_tensors` gave; `UserError` when it is another model's."""
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
                continue  # no step has been taken
            shapes = {key: () if key == "step" else parameter.shape for key in keys}
            if {key: value.shape for key, value in state.items()} != shapes:
                raise UserError(
                    f"the optimizer's state {prefix} is not that of this model's weight"
                )
            whole["state"][index] = {
                key: value if key == "step" else distributed.shared_like(value, parameter)
                for key, value in state.items()
            }
        optimizer.load_state_dict(whole)
    if left:
        raise UserError(
            f"the optimizer's state has {next(iter(left))}, which this model has not; "
            "resume with the --kernels and --optimizer of the run"
        )
