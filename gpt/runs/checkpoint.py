"""Checkpoint files: tensors in safetensors, everything else in JSON, never pickle; all or nothing.

A checkpoint NAME is the file NAME.json: a record, the record's sha256, and the name and sha256 of
each tensor file, which several checkpoints may share. Tensor files are written first, under names
that contain their hash. Renaming the JSON file into place is the moment at which the new checkpoint
becomes visible and replaces the old one. Tensor files that no checkpoint names are removed last.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .. import UserError
from ..files import Folder

VERSION = 1
TENSOR_FILE = re.compile(r"\d{7,}\.[0-9a-f]{16}\.\w+\.safetensors")  # step, sha256, kind
LARGEST_HEADER = 1 << 23  # bytes; of a model of the most layers that ModelConfig allows
KEPT = re.compile(r"(step-\d{7,})\.json")  # checkpoints that --keep has kept
DTYPES = {  # as safetensors names them
    **{torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"},
}

Tensors = dict[str, torch.Tensor]


def save(
    folder: Folder,
    names: dict[str, Iterable[str]],
    tensors: dict[str, Tensors],
    record: dict,
    keep: int | None = None,
) -> None:
    """Write the checkpoints `names` = {NAME: its kinds of tensors}, in order.

    tensors: {KIND: {name: tensor}}. record: plain JSON with at least "step". keep: how many of the
    other checkpoints step-NUMBER stay, those of the last steps; None: all. Raises UserError if
    the disk is full or not writable, or if the folder is no longer this process's; every checkpoint
    is then either the old or the new one.
    """
    try:
        files = {kind: _write_tensors(folder, kind, tensors[kind], record) for kind in tensors}
        folder.flush()  # makes the file names durable before a JSON file refers to them
        for name, kinds in names.items():
            whole = {"version": VERSION, **record, "files": {kind: files[kind] for kind in kinds}}
            folder.write_json(f"{name}.json", {**whole, "sha256": _sha256_of_record(whole)})
        older = sorted((name for name in kept_names(folder) if name not in names), key=step_of)
        for name in older[:-keep] if keep else ():
            folder.remove(f"{name}.json")
    except OSError as error:
        reason = error.strerror or error
        problem = f"the checkpoint of step {record['step']} could not be saved to {folder.path}"
        advice = "no earlier one is left there"
        with contextlib.suppress(OSError):
            if "last.json" in folder.names():
                advice = "the one before it is intact: free some space and continue with --resume"
        raise UserError(f"{problem} ({reason}); {advice}") from None
    finally:
        with contextlib.suppress(OSError, UserError):
            _remove_unnamed(folder)


def load(path: Path, name: str, kinds: Iterable[str] = ("weights",)):
    """Return the record of checkpoint `name`, and its tensors {KIND: {name: tensor}}.

    Raises UserError if the checkpoint is missing, damaged or of another version. A training process
    may be writing to the folder at the same time.
    """
    with _opened(path) as folder:
        return _read(folder, name, kinds)


def newest(path: Path, kinds: Iterable[str] = ()) -> tuple[str, dict, dict[str, Tensors], str]:
    """The name of `last` and what `load` returns of it; if it is damaged, the newest whole one.

    That is one which --keep has kept. The text at the end says so, or is empty. Raises UserError if
    there is none.
    """
    with _opened(path) as folder:
        try:
            return "last", *_read(folder, "last", kinds), ""
        except UserError as error:
            damage = error
        for name in sorted(kept_names(folder), key=step_of, reverse=True):
            with contextlib.suppress(UserError):
                note = f"{damage}; using {name}.json instead, the newest whole checkpoint"
                return name, *_read(folder, name, kinds), note
        raise damage


def _read(folder: Folder, name: str, kinds: Iterable[str]) -> tuple[dict, dict[str, Tensors]]:
    while True:
        record = _read_record(folder, name)
        try:
            return record, {kind: _read_tensors(folder, name, record, kind) for kind in kinds}
        except FileNotFoundError as error:
            if _read_record(folder, name) == record:
                path = folder.path / f"{name}.json"
                raise UserError(f"{error} is missing, but {path} refers to it") from None
            # the checkpoint was replaced in the meantime: read the new one


def last_record(path: Path) -> dict:
    """The record of the checkpoint that `newest` finds."""
    return newest(path)[1]


def kept_names(folder: Folder) -> list[str]:
    """The names of the checkpoints that --keep has kept."""
    return [match[1] for name in folder.names() if (match := KEPT.fullmatch(name))]


def step_of(name: str) -> int:
    """The step of a kept checkpoint."""
    return int(name.removeprefix("step-"))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Folder]:
    try:
        folder = Folder(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name the folder of a run") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    with folder:
        yield folder


def _remove_unnamed(folder: Folder) -> None:
    """Remove the tensor files that no checkpoint in the folder refers to."""
    named = set()
    for name in folder.names():
        if name.endswith(".json"):
            try:
                files = folder.read_json(name).get("files", {})
                named |= {file["name"] for file in files.values()}
            except (UserError, AttributeError, TypeError, KeyError):
                return  # the files of a damaged checkpoint are kept
    for name in folder.names():
        if TENSOR_FILE.fullmatch(name) and name not in named:
            folder.remove(name)


def serialised(tensors: Tensors, **metadata: str) -> Iterator[bytes | memoryview]:
    """The parts of a safetensors file: the size of its header, the header, and each tensor.

    The library's own writer leaves its temporary file behind when it is killed.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # aligned
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        described = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = {**described, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in order:
        yield tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write_tensors(folder: Folder, kind: str, tensors: Tensors, record: dict) -> dict:
    partial, digest = folder.write_partial(serialised(tensors))
    # the hash in the name: a file that a checkpoint refers to never changes
    name = f"{record['step']:07d}.{digest[:16]}.{kind}.safetensors"
    folder.publish(partial, name)
    return {"name": name, "sha256": digest}


def _read_record(folder: Folder, name: str) -> dict:
    path, record = folder.path / f"{name}.json", folder.read_json(f"{name}.json")
    version, expected = record.get("version"), record.pop("sha256", None)
    if version != VERSION:
        raise UserError(f"{path} has version {version!r}, but this program reads version {VERSION}")
    if _sha256_of_record(record) != expected:
        raise UserError(f"{path} is damaged: its sha256 does not match its content")
    return record


def _read_tensors(folder: Folder, checkpoint: str, record: dict, kind: str) -> Tensors:
    json_name = f"{checkpoint}.json"
    path = folder.path / json_name
    try:
        name, expected = record["files"][kind]["name"], record["files"][kind]["sha256"]
    except (KeyError, TypeError):
        raise UserError(f"{path} does not contain {kind}; it is damaged or incomplete") from None
    if not isinstance(name, str) or not TENSOR_FILE.fullmatch(name):
        raise UserError(f"{path} names {name!r}, which is not a tensor file in the same folder")
    tensor_path = folder.path / name
    try:
        with folder.open(name) as file:
            if _sha256_of_file(file) != expected:
                raise UserError(f"{tensor_path} is damaged: its sha256 does not match {json_name}")
            return load_tensors(f"/dev/fd/{file.fileno()}")  # the file that was hashed
    except FileNotFoundError:
        raise FileNotFoundError(str(tensor_path)) from None
    except OSError as error:
        raise UserError(f"{tensor_path} cannot be read: {error.strerror}") from None
    except SafetensorError as error:
        raise UserError(f"{tensor_path} is not a safetensors file: {error}") from None


def load_tensors(path: Path | str) -> Tensors:
    """The tensors of a safetensors file; SafetensorError, or OSError."""
    with open(path, "rb") as file:
        if int.from_bytes(file.read(8), "little") > LARGEST_HEADER:  # it takes 30 times the memory
            raise SafetensorError(f"its header is larger than {LARGEST_HEADER >> 20} MiB")
    return load_file(path)


def _sha256_of_record(record: dict) -> str:
    """Of the record's JSON with sorted keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _sha256_of_file(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
