"""Files that are written completely or not at all, in folders that are held open, and JSON.

Every program writes through `Folder`: a file is written under a temporary name, flushed, and
renamed, and then its folder is flushed. After a crash it is the old file or the new one. All system
calls are made by functions of `os`, so that a test can let each of them fail.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from . import UserError

LARGEST_JSON = 1 << 26  # bytes; a checkpoint's record has a few KiB and a vocabulary
PARTIAL = ".partial"  # end of the names of unfinished files and folders


class File(io.RawIOBase):
    """An open file without a buffer: a full disk raises OSError at the write that meets it."""

    def __init__(self, descriptor: int):
        super().__init__()
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def write(self, content) -> int:
        """Write all bytes of a contiguous buffer."""
        left = memoryview(content)
        left = left.cast("B") if left.nbytes else left  # which empty views do not support
        while left.nbytes:
            left = left[os.write(self._descriptor, left) :]
        return memoryview(content).nbytes

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return os.lseek(self._descriptor, offset, whence)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        os.ftruncate(self._descriptor, size)
        return size

    def sync(self) -> None:
        """Force the content to the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._descriptor)


class Folder:
    """A folder that is held open: what is read and written is in it, even if its path changes.

    Names are those of files in the folder itself, and links are not followed.
    """

    def __init__(self, path: Path):
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        os.close(self.descriptor)

    def check(self) -> None:
        """Called before a file is replaced or removed; raises if this process must not."""

    def names(self) -> list[str]:
        return sorted(os.listdir(self.descriptor))

    def open(self, name: str) -> BinaryIO:
        return open_file(name, self)

    def read_json(self, name: str) -> dict:
        return read_json(self.path / name, self)

    def create(self, name: str) -> File:
        """A new file, to be read and written."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        return File(os.open(name, flags, 0o666, dir_fd=self.descriptor))  # less the umask

    def append(self, name: str) -> File:
        """A file whose writes are added at its end."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
        return File(os.open(name, flags, dir_fd=self.descriptor))

    def write(self, name: str, content: Iterable[bytes | memoryview]) -> None:
        """Write a file atomically: after a crash it is the old or the new one, never a mixture."""
        partial, _ = self.write_partial(content)
        self.publish(partial, name)
        self.flush()

    def write_json(self, name: str, record: dict) -> None:
        self.write(name, [(json.dumps(record, indent=1) + "\n").encode()])

    def write_partial(self, content: Iterable[bytes | memoryview]) -> tuple[str, str]:
        """Write and flush a file under a temporary name; return the name and its sha256."""
        partial, digest = os.urandom(8).hex() + PARTIAL, hashlib.sha256()
        try:
            with self.create(partial) as file:
                for part in content:
                    file.write(part)
                    digest.update(part)
                file.sync()
        except BaseException:  # KeyboardInterrupt too
            self._discard(partial)
            raise
        return partial, digest.hexdigest()

    def publish(self, partial: str, name: str) -> None:
        """Rename what `write_partial` wrote. The name is durable after the next `flush`."""
        try:
            self.check()
            os.replace(partial, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except BaseException:
            self._discard(partial)
            raise

    def remove(self, name: str) -> None:
        self.check()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def flush(self) -> None:
        """Force the names of the files to the disk."""
        os.fsync(self.descriptor)

    def remove_partial(self) -> None:
        """Remove the unfinished files of processes that were killed."""
        for name in self.names():
            if name.endswith(PARTIAL):
                self.remove(name)

    def _discard(self, partial: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(partial, dir_fd=self.descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with Folder(path.parent) as folder:
        folder.write(path.name, [content])


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Folder]:
    """A folder to be filled, which appears at `path` when the context is left without an error.

    Raises UserError if `path` exists already and is not an empty folder. What a killed process has
    left of such a folder is removed.
    """
    if os.path.lexists(path) and (not path.is_dir() or path.is_symlink() or any(path.iterdir())):
        raise UserError(f"{path} already exists; remove it or choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.*{PARTIAL}"):
        with contextlib.suppress(OSError), Folder(stale) as folder:
            fcntl.flock(folder.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(stale)
    partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}{PARTIAL}")
    os.mkdir(partial)
    try:
        with Folder(partial) as folder:
            with contextlib.suppress(OSError):  # some network file systems lock files only
                fcntl.flock(folder.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
            folder.flush()
            os.rename(partial, path)
        with Folder(path.parent) as parent:
            parent.flush()
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def open_file(path: Path | str, folder: Folder | None = None, limit: int = sys.maxsize) -> BinaryIO:
    """Open a file to be read: by its path, or by its name in a folder without following a link.

    Raises OSError, also for a file of more than `limit` bytes, a pipe, which would block, or a
    device, which may be endless.
    """
    within, links = (None, 0) if folder is None else (folder.descriptor, os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | links, dir_fd=within)
    except OSError as error:
        if links and error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, which is not followed") from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        os.close(descriptor)
        size = f" of at most {limit >> 20:,} MiB" if limit < sys.maxsize else ""
        raise OSError(errno.EINVAL, f"it is not a regular file{size}")
    return os.fdopen(descriptor, "rb")


def read_json(path: Path, folder: Folder | None = None) -> dict:
    """The JSON object in a file; UserError if the file is missing or damaged.

    folder: holds the file, which is then not read through a link.
    """
    try:
        name = path if folder is None else path.name
        with open_file(name, folder, LARGEST_JSON) as file:
            record = json.loads(file.read())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; is there a run in {path.parent}?") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise UserError(f"{path} is not a JSON object")
    return record
