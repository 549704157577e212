"""Atomic writes, and JSON that is validated when it is read."""

import contextlib
import json
import os
import stat
from pathlib import Path

from . import UserError

LARGEST_JSON = 1 << 26  # bytes; a checkpoint's record has a few KiB and a vocabulary


def write_json(path: Path, record: dict) -> None:
    """Write `record` atomically."""
    write_whole(path, (json.dumps(record, indent=1) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: after a crash it is the old or the new one, never a mixture."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        flush(partial)
        os.replace(partial, path)
        flush(path.parent)  # makes the rename durable
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict:
    """The JSON object in a file; UserError if the file is missing or damaged."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_JSON:
            raise UserError(f"{path} is not a file of at most {LARGEST_JSON >> 20} MiB")
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


def remove_partial(folder: Path) -> None:
    """Remove the unfinished files of processes that were killed."""
    for path in folder.glob("*.partial"):
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
