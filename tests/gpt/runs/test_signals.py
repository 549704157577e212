"""Which signals stop a run; tests/test_processes.py sends them to processes."""

import os
import signal

import pytest

from gpt.runs.signals import StopSignals
from gpt.training import distributed

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU")


@pytest.mark.parametrize("name", STOPPING)
def test_a_signal_stops_a_run_unless_it_is_ignored(name, capfd, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with StopSignals() as signals:
        os.kill(os.getpid(), number)
        for other in ("SIGXCPU", "SIGHUP", "SIGTERM"):  # of the system, and of torchrun
            os.kill(os.getpid(), signal.Signals[other])
        assert signals.received == name
        assert signals.must_stop()
    assert signal.getsignal(number) == before
    assert capfd.readouterr().err.count("stopping and saving") == 1
    signal.signal(number, signal.SIG_IGN)  # as nohup does
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), number)
        assert signals.received == ""
    finally:
        signal.signal(number, before)
