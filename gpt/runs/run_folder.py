"""The folder of a run: one training process at a time, and earlier runs are kept."""

import contextlib
import fcntl
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from .. import UserError
from ..files import remove_partial


@contextlib.contextmanager
def run_folder(folder: Path, resume: bool) -> Iterator[Path | None]:
    """Create and lock `folder` for a run; the lock is released on leaving the context.

    Unless the run is resumed, a folder that holds a run is first renamed to folder.1, folder.2, ...
    Yields the new path of that earlier run, or None. Raises UserError if another process is
    training in the folder, or if it cannot be written.
    """
    with contextlib.ExitStack() as locks:
        moved = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(_locked(folder))
            if not resume and (folder / "config.json").exists():
                paths = (Path(f"{folder}.{number}") for number in count(1))
                moved = next(path for path in paths if not path.exists())
                folder.rename(moved)
                folder.mkdir()
                locks.enter_context(_locked(folder))
            remove_partial(folder)
        except OSError as error:
            raise UserError(f"--out-dir {folder} is not usable: {error.strerror}") from None
        yield moved


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = f"another train.py is running in {folder}"
            raise UserError(f"{problem}; wait for it or use another --out-dir") from None
        yield
