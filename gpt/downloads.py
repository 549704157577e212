"""Downloads that end, or do not begin: deadlines, and --offline.

A timeout of a library is that of one read: it limits neither the search for an address, which
cannot be interrupted, nor a server that sends one byte a second. So a download runs in a thread,
which is left alone when its time is over.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

LIMIT = 60.0  # seconds for a small file, from the search for the address to the last byte
OFFLINE = "HF_HUB_OFFLINE"  # the variable of the Hugging Face libraries, which read it on import
AT_ONCE, AHEAD = 64, 4  # items in a batch, and batches that are read ahead


def go_offline() -> None:
    """Let neither this process nor the libraries that it will import use the network."""
    os.environ |= {OFFLINE: "1", "WANDB_MODE": "offline"}


def is_offline() -> bool:
    """Whether nothing may be downloaded, by --offline or because the user has set OFFLINE."""
    return os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE")  # as the hub reads it


def within(seconds: float, download: Callable[[], T]) -> T:
    """What `download` returns or raises; TimeoutError if that takes longer."""
    return next(in_time(seconds, lambda: [download()]))


def in_time(seconds: float, items: Callable[[], Iterable[T]]) -> Iterator[T]:
    """Yield the items, which a thread reads ahead, or raise what reading them raises.

    Raises TimeoutError if the first batch or a later one takes longer than `seconds`.
    """
    batches: queue.Queue[list[T] | BaseException] = queue.Queue(AHEAD)
    is_left = threading.Event()

    def read() -> None:
        try:
            remaining = iter(items())
            while not is_left.is_set() and (batch := list(islice(remaining, AT_ONCE))):
                batches.put(batch)
            batches.put([])
        except BaseException as error:  # which is raised where the items are used
            batches.put(error)

    threading.Thread(target=read, daemon=True).start()
    try:
        while batch := batches.get(timeout=seconds):  # Ctrl-C interrupts it
            if isinstance(batch, BaseException):
                raise batch
            yield from batch
    except queue.Empty:
        raise TimeoutError(f"it took longer than {seconds:.0f} s") from None
    finally:
        is_left.set()
        while not batches.empty():  # the thread may wait for a place
            batches.get_nowait()
