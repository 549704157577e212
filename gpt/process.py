"""What a program shares with its surroundings: streams that may break, and signals that end it."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator


class _Lenient(io.FileIO):
    """A stream whose failed writes are lost: its terminal is gone, its reader, or the disk full."""

    def write(self, content) -> int:
        with contextlib.suppress(OSError):
            return super().write(content) or 0
        return len(content)


def protect_streams(keep_stdout: bool = False) -> None:
    """Let nothing that is printed raise: what cannot be encoded is replaced, what fails is lost.

    keep_stdout: failed writes to stdout raise all the same, because it is the program's result.
    Streams that are closed become /dev/null, or files that are opened later would take their place.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name, number in (("stdout", 1), ("stderr", 2)):
        encoding = getattr(getattr(sys, name), "encoding", "utf-8")
        kind = io.FileIO if keep_stdout and number == 1 else _Lenient
        raw = kind(number, "wb", closefd=False)
        lines = raw.isatty() or number == 2
        stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding, "replace", line_buffering=lines)
        setattr(sys, name, stream)


def discard_stdout() -> None:
    """After a failed write: what is still in its buffer must not raise at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, as an exception: what was begun is undone on its way."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number  # as shells report it


@contextlib.contextmanager
def raising_signals() -> Iterator[None]:
    """A context in which SIGTERM and SIGHUP raise Terminated, unless they are ignored."""

    def receive(number, frame):
        raise Terminated(number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
