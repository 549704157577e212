"""The folder of a run: one training process at a time, and earlier runs are kept."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from .. import UserError
from ..files import Folder

LOCK = "lock"


class RunFolder(Folder):
    """A folder that this process has locked, and to which it writes only as long as it has.

    A lock does not keep others from moving or removing the folder or the lock itself, after which a
    second run can start under the same path. Raises OSError, and UserError if the lock is taken.
    """

    earlier: Path | None = None  # where a run that was in the folder is now

    def __init__(self, path: Path):
        super().__init__(path)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            self._lock = os.open(LOCK, flags, 0o666, dir_fd=self.descriptor)
        except OSError:
            os.close(self.descriptor)
            raise
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.check()
        except BlockingIOError:
            self.__exit__()
            problem = f"another train.py is running in {path}"
            raise UserError(f"{problem}; wait for it or use another --out-dir") from None
        except UserError:
            self.__exit__()
            raise

    def __exit__(self, *error) -> None:
        os.close(self._lock)
        super().__exit__()

    def check(self) -> None:
        """Raise UserError if the lock in the folder is not the one that this process holds."""
        try:
            found = os.stat(LOCK, dir_fd=self.descriptor, follow_symlinks=False)
            is_ours = os.path.samestat(found, os.fstat(self._lock))
        except FileNotFoundError:
            is_ours = False
        if not is_ours:
            problem = f"{self.path} or the lock in it was removed or replaced during training"
            raise UserError(f"{problem}, so this run has stopped without writing to it")

    @property
    def place(self) -> Path:
        """Where the folder is now; not its path if it was moved."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self.path), os.fstat(self.descriptor)):
                return self.path
        with contextlib.suppress(OSError):  # without /proc
            return Path(os.readlink(f"/proc/self/fd/{self.descriptor}"))
        return Path("an unknown place")


@contextlib.contextmanager
def run_folder(path: Path, resume: bool) -> Iterator[RunFolder]:
    """Create and lock the folder of a run; the lock is released on leaving the context.

    Unless the run is resumed, a folder that holds a run is first renamed to path.1, path.2, ...:
    `earlier` of what is yielded. Raises UserError if another process is training in the folder, or
    if it cannot be written.
    """
    with contextlib.ExitStack() as locks:
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder = locks.enter_context(RunFolder(path))
            if not resume and "config.json" in folder.names():
                paths = (Path(f"{path}.{number}") for number in count(1))
                earlier = next(each for each in paths if not os.path.lexists(each))
                path.rename(earlier)
                path.mkdir()
                folder = locks.enter_context(RunFolder(path))
                folder.earlier = earlier
            folder.remove_partial()
        except OSError as error:
            raise UserError(f"--out-dir {path} is not usable: {error.strerror}") from None
        yield folder
