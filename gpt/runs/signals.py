"""Signals that stop training: it ends after the current step or evaluation batch, and saves."""

import contextlib
import os
import signal
import time

from ..training import distributed

NOTE = b"\nstopping and saving; interrupt again to stop at once\n"
ECHO = 1.0  # seconds: a rank may get one signal twice, from the process group and from torchrun
# what ends a process at once; the others may be repeated by whoever sends them
ENDING = (signal.SIGINT, signal.SIGTERM)
# a lost terminal, Slurm's --signal, and the limit of CPU time of LSF and ulimit
OTHERS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)


class StopSignals:
    """In this context the first signal sets `received` to its name.

    A second SIGINT or SIGTERM ends the process. What is ignored, as under nohup, stays ignored.
    """

    def __enter__(self):
        self.received, self._echo_until = "", 0.0
        known = [each for each in (*ENDING, *OTHERS) if signal.getsignal(each) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._receive) for number in known}
        return self

    def must_stop(self) -> bool:
        return bool(self.received)

    def _receive(self, number, frame) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        is_first = not self.received
        if is_first:  # set at once: the next signal may interrupt this function
            self.received, self._echo_until = name, now + ECHO
        elif now < self._echo_until or number in OTHERS:
            return
        if not is_first or distributed.world_size() == 1:
            for each in self._before.keys() & set(ENDING):
                signal.signal(each, signal.SIG_DFL)  # before the note: its reader may signal again
        if not is_first:
            os.kill(os.getpid(), number)
        with contextlib.suppress(OSError):  # the terminal is gone
            os.write(2, NOTE)  # not print, which may be running when the signal arrives

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
