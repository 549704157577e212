"""SIGINT (Ctrl-C) and SIGTERM: training stops after the current step and saves."""

import os
import signal
import time

from ..training import distributed

NOTE = b"\nstopping after this step, which is saved; interrupt again to stop at once\n"
ECHO = 1.0  # seconds: a rank may get one signal twice, from the process group and from torchrun


class StopSignals:
    """In this context the first signal sets `received` to its name; a second ends the process."""

    def __enter__(self):
        self.received, self._echo_until = "", 0.0
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def _receive(self, number, frame) -> None:
        if self.received and time.monotonic() < self._echo_until:
            return
        if self.received or distributed.world_size() == 1:
            for each in self._before:  # before the note: whoever reads it may signal again
                signal.signal(each, signal.SIG_DFL)
        if self.received:
            os.kill(os.getpid(), number)
        self.received = signal.Signals(number).name
        self._echo_until = time.monotonic() + ECHO
        os.write(2, NOTE)  # not print, which may be running when the signal arrives

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
