"""Let a program fail or die at any of its system calls, and the disks that a power cut leaves."""

import contextlib
import errno
import itertools
import os
from unittest import mock

CALLS = ("open", "write", "fsync", "replace", "rename", "unlink", "mkdir", "ftruncate", "rmdir")


class Killed(BaseException):
    """Stands for SIGKILL: the program does not catch it, and no later call reaches the disk."""


FAULTS = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), Killed()]


@contextlib.contextmanager
def patched(wrap):
    """Replace each function of CALLS by wrap(its name, the function)."""
    with contextlib.ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(mock.patch.object(os, name, wrap(name, getattr(os, name))))
        yield


@contextlib.contextmanager
def fault(when, error):
    """Raise `error` at the `when`-th system call; yield the names of the calls so far.

    A write that fails has written half.
    """
    calls = []

    def wrap(name, function):
        def call(*arguments, **options):
            calls.append(name)
            if len(calls) == when and name == "write":
                descriptor, content = arguments
                function(descriptor, bytes(content)[: len(content) // 2])
            if len(calls) == when or (isinstance(error, Killed) and len(calls) > when):
                raise error
            return function(*arguments, **options)

        return call

    with patched(wrap):
        yield calls


class Log:
    """What a program does to the files of one folder, by the system calls that it makes."""

    def __init__(self, folder):
        self.names, self.files = {}, []  # name -> file; the parts that were written to each file
        self.synced = []  # how many parts of each file are on the disk
        for path in folder.iterdir():
            self.names[path.name] = self._add(path.read_bytes())
        self.pending = []  # changes of names since the folder was flushed
        self.states = set()  # after a power cut: pairs of name and content

    def _add(self, content=b""):
        self.files.append([content])
        self.synced.append(1)
        return len(self.files) - 1

    @contextlib.contextmanager
    def recording(self):
        """Record the calls in this context; add the states of a power cut at each of them."""
        opened = {}  # descriptor -> file

        def wrap(name, function):
            def call(*arguments, **options):
                result = function(*arguments, **options)
                if name == "open":
                    opened.pop(result, None)
                    if arguments[1] & os.O_APPEND:
                        opened[result] = self._after(self.pending)[arguments[0]]
                    if arguments[1] & os.O_EXCL:
                        opened[result] = self._add()
                        self.pending.append((None, arguments[0], opened[result]))
                elif name == "write":
                    self.files[opened[arguments[0]]].append(bytes(arguments[1][:result]))
                elif name == "fsync" and arguments[0] in opened:
                    file = opened[arguments[0]]
                    self.synced[file] = len(self.files[file])
                elif name == "fsync":
                    self.names, self.pending = self._after(self.pending), []
                elif name == "replace":
                    self.pending.append((*arguments, self._after(self.pending)[arguments[0]]))
                elif name == "unlink":
                    self.pending.append((arguments[0], None, None))
                self._cut()
                return result

            return call

        with patched(wrap):
            yield

    def _after(self, changes):
        names = dict(self.names)
        for removed, added, file in changes:
            names.pop(removed, None)
            if added is not None:
                names[added] = file
        return names

    def _cut(self):
        """A power cut: any of the pending changes are on the disk, and any part of the writes."""
        for chosen in itertools.product((False, True), repeat=len(self.pending)):
            names = self._after(itertools.compress(self.pending, chosen))
            for share in (0, 0.5, 1):
                content = {name: self._content(file, share) for name, file in names.items()}
                self.states.add(frozenset(content.items()))

    def _content(self, file, share):
        parts, end = self.files[file], self.synced[file]
        late = b"".join(parts[end:])
        return b"".join(parts[:end]) + late[: int(share * len(late))]
