"""Text from tokens while they are generated, up to a stop string."""

from collections.abc import Callable, Iterator

from torch import Tensor


class TextStream:
    """The text of one row, token by token, which ends before the first `stop`.

    Each call takes a token and returns the text that is now certain; text that may turn out to be
    the beginning of `stop` is held back. `decode` is a tokenizer's `stream()`.
    """

    def __init__(self, decode: Callable[[int], str], stop: str = ""):
        self.decode, self.stop = decode, stop
        self.held, self.stopped, self.tokens = "", False, 0

    def __call__(self, token: int) -> str:
        self.tokens += 1
        self.held += self.decode(token)
        if self.stop and self.stop in self.held:
            self.stopped = True
            self.held = self.held[: self.held.index(self.stop)]
            return self.rest()
        lengths = range(len(self.stop) - 1, 0, -1)  # of a suffix that `stop` may start with
        overlap = next((n for n in lengths if self.held.endswith(self.stop[:n])), 0)
        certain = len(self.held) - overlap
        text, self.held = self.held[:certain], self.held[certain:]
        return text

    def rest(self) -> str:
        """Return the text that was held back, once no token follows."""
        text, self.held = self.held, ""
        return text


def in_order(tokens: Iterator[Tensor], streams: list[TextStream]) -> Iterator[tuple[int, str]]:
    """Yield (row, text) as soon as it can be printed: when all rows before it are finished.

    tokens: (B,) for each step. Ends early once every row has reached its stop string.
    """
    waiting = [""] * len(streams)
    current = 0
    for step in tokens:
        for row, token in enumerate(step.tolist()):
            if not streams[row].stopped:
                waiting[row] += streams[row](token)
        while current < len(streams):
            yield current, waiting[current]
            waiting[current] = ""
            if not streams[current].stopped:
                break
            current += 1
        else:
            return
    for row in range(current, len(streams)):
        yield row, waiting[row] + streams[row].rest()
