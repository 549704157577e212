"""Checkpoint files: tensors in safetensors, everything else in JSON, never pickle; all or nothing.

A checkpoint NAME is the file NAME.json: a record, the record's sha256, and the name and sha256 of
each tensor file, which several checkpoints may share. Tensor files are written first, under names
that contain their hash. Renaming the JSON file into place is the moment at which the new checkpoint
becomes visible and replaces the old one. Tensor files that no checkpoint names are removed last.
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

from .. import UserError
from ..files import flush, read_json, write_json

VERSION = 1
TENSOR_FILE = re.compile(r"\d{7,}\.[0-9a-f]{16}\.\w+\.safetensors")  # step, sha256, kind

Tensors = dict[str, torch.Tensor]


def save(
    folder: Path,
    names: dict[str, Iterable[str]],
    tensors: dict[str, Tensors],
    record: dict,
    forget: Iterable[str] = (),
) -> None:
    """Write the checkpoints `names` = {NAME: its kinds of tensors}, in order; remove `forget`.

    tensors: {KIND: {name: tensor}}. record: plain JSON with at least "step". Raises UserError if
    the disk is full or not writable; every checkpoint is then either the old or the new one.
    """
    try:
        files = {kind: _write_tensors(folder, kind, tensors[kind], record) for kind in tensors}
        flush(folder)  # makes the file names durable before a JSON file refers to them
        for name, kinds in names.items():
            whole = {"version": VERSION, **record, "files": {kind: files[kind] for kind in kinds}}
            write_json(folder / f"{name}.json", {**whole, "sha256": _sha256_of_record(whole)})
        for name in forget:
            (folder / f"{name}.json").unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        problem = f"the checkpoint of step {record['step']} could not be saved to {folder}"
        advice = "the one before it is intact: free some space and continue with --resume"
        raise UserError(f"{problem} ({reason}); {advice}") from None
    finally:
        with contextlib.suppress(OSError):
            _remove_unnamed(folder)


def load(folder: Path, name: str, kinds: Iterable[str] = ("weights",)):
    """Return the record of checkpoint `name`, and its tensors {KIND: {name: tensor}}.

    Raises UserError if the checkpoint is missing, damaged or of another version. A training process
    may be writing to the folder at the same time.
    """
    path = folder / f"{name}.json"
    while True:
        record = _read_record(path)
        try:
            return record, {kind: _read_tensors(path, record, kind) for kind in kinds}
        except FileNotFoundError as error:
            if _read_record(path) == record:
                raise UserError(f"{error} is missing, but {path} refers to it") from None
            # the checkpoint was replaced in the meantime: read the new one


def _remove_unnamed(folder: Path) -> None:
    """Remove the tensor files that no checkpoint in the folder refers to."""
    named = set()
    for path in folder.glob("*.json"):
        try:
            files = read_json(path).get("files", {})
            named |= {file["name"] for file in files.values()}
        except (UserError, AttributeError, TypeError, KeyError):
            return  # the files of a damaged checkpoint are kept
    for path in folder.glob("*.safetensors"):
        if TENSOR_FILE.fullmatch(path.name) and path.name not in named:
            path.unlink(missing_ok=True)


def _write_tensors(folder: Path, kind: str, tensors: Tensors, record: dict) -> dict:
    partial = folder / f"{kind}.{os.getpid()}.partial"
    try:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial)
        flush(partial)
        digest = _sha256_of_file(partial)
        # the hash in the name: a file that a checkpoint refers to never changes
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
        raise UserError(f"{path} has version {version!r}, but this program reads version {VERSION}")
    if _sha256_of_record(record) != expected:
        raise UserError(f"{path} is damaged: its sha256 does not match its content")
    return record


def _read_tensors(path: Path, record: dict, kind: str) -> Tensors:
    try:
        name, expected = record["files"][kind]["name"], record["files"][kind]["sha256"]
    except (KeyError, TypeError):
        raise UserError(f"{path} does not contain {kind}; it is damaged or incomplete") from None
    if not isinstance(name, str) or not TENSOR_FILE.fullmatch(name):
        raise UserError(f"{path} names {name!r}, which is not a tensor file in the same folder")
    tensor_path = path.parent / name
    try:
        if not stat.S_ISREG(tensor_path.stat().st_mode):
            raise UserError(f"{tensor_path} is not a regular file")
        if _sha256_of_file(tensor_path) != expected:
            raise UserError(f"{tensor_path} is damaged: its sha256 does not match {path.name}")
        return load_file(tensor_path)
    except FileNotFoundError:
        raise FileNotFoundError(str(tensor_path)) from None
    except OSError as error:
        raise UserError(f"{tensor_path} cannot be read: {error.strerror}") from None
    except SafetensorError as error:
        raise UserError(f"{tensor_path} is not a safetensors file: {error}") from None


def _sha256_of_record(record: dict) -> str:
    """Of the record's JSON with sorted keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
