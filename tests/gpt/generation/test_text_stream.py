"""Text streams end before their stop string, and rows are printed in order."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt.generation.text_stream import TextStream, in_order


@given(st.text("ab\n", max_size=12), st.text("ab\n", max_size=4))
def test_text_ends_before_the_first_stop_and_holds_back_no_more_than_its_prefix(text, stop):
    stream, streamed = TextStream(text.__getitem__, stop), ""
    for token in range(len(text)):
        streamed += stream(token)
        if stream.stopped:
            break
        assert stop.startswith(text[len(streamed) : token + 1])
    before, found, _ = text.partition(stop) if stop else (text, "", "")
    assert streamed + stream.rest() == before
    assert stream.stopped == bool(found)


def test_a_row_is_yielded_once_the_rows_before_it_are_finished():
    """The second row ends first; the third never ends."""
    texts, stop = ("aab|", "b|", "aaaaaa"), "|"
    taken = []

    def tokens():
        for step in range(6):
            taken.append(step)
            yield torch.tensor([min(step, len(text) - 1) for text in texts])

    streams = [TextStream(text.__getitem__, stop) for text in texts]
    printed = [(len(taken), *piece) for piece in in_order(tokens(), streams)]
    assert [piece for piece in printed if piece[2]] == [
        *((1, 0, "a"), (2, 0, "a"), (3, 0, "b")),
        (4, 1, "b"),
        *((4, 2, "aaaa"), (5, 2, "a"), (6, 2, "a")),
    ]
    assert [stream.tokens for stream in streams] == [4, 2, 6]
