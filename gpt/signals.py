"""SIGINT (Ctrl-C) and SIGTERM as a wish to stop, which training grants at the end of its step."""

import os
import signal

NOTE = b"\nstopping when this step is over and saved; once more stops at once\n"


class StopSignals:
    """Inside its context the first signal sets `asked` to its name; a second ends the process."""

    def __enter__(self):
        self.asked = ""
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def _ask(self, number, frame) -> None:
        self.asked = signal.Signals(number).name
        os.write(2, NOTE)  # print may be at work itself when a signal comes
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
