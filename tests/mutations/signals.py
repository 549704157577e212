"""One-line mutations of `gpt/runs/signals.py`, and what each would break."""

FILE = "gpt/runs/signals.py"
TESTS = ["tests/test_processes.py"]
MUTATIONS = [
    ("if self.received and time.monotonic() < self._echo_until:", "if False:", "a signal that torchrun forwards ends the ranks before they save"),
    ("if self.received or distributed.world_size() == 1:", "if False:", "a second signal does not stop the run"),
    ("for number in numbers}", "for number in numbers[:1]}", "SIGTERM ends the run before it saves"),
]
