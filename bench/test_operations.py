"""Times forward, backward and both of every operation and module with every implementation."""


def test_speed(entry, measure):
    measure(*entry)
