"""SIGINT (Ctrl-C) and SIGTERM as a wish to stop, which training grants at the end of its step."""

import os
import signal
import time

from gpt.training import distributed

NOTE = b"\nstopping when this step is over and saved; once more stops at once\n"
ECHO = 1.0  # seconds in which ranks hear one signal twice: of the group's sender and of torchrun


class StopSignals:
    """Inside its context the first signal sets `asked` to its name; a second ends the process."""

    def __enter__(self):
        self.asked, self._echo_until = "", 0.0
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def _ask(self, number, frame) -> None:
        if self.asked and time.monotonic() < self._echo_until:
            return
        if self.asked or distributed.world() == 1:
            for each in self._before:  # before the note: who reads it may signal again
                signal.signal(each, signal.SIG_DFL)
        if self.asked:
            os.kill(os.getpid(), number)
        self.asked = signal.Signals(number).name
        self._echo_until = time.monotonic() + ECHO
        os.write(2, NOTE)  # print may be at work itself when a signal comes

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
