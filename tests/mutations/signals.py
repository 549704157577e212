"""One-line mistakes in `gpt/runs/signals.py`, and what each would break."""

FILE = "gpt/runs/signals.py"
TESTS = ["tests/test_processes.py"]
MUTATIONS = [
    ("if self.asked and time.monotonic() < self._echo_until:", "if False:", "a signal that a launcher passes on ends the ranks unsaved"),
    ("if self.asked or ranks.world() == 1:", "if False:", "a second signal is not heard"),
    ("for number in numbers}", "for number in numbers[:1]}", "SIGTERM ends the run unsaved"),
]
