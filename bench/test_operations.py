"""Forward, backward, and both, of every operation and module, against every rival that is there."""


def test_speed(entry, measure):
    measure(*entry)
