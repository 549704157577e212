"""One-line mutations of `gpt/training/step.py`, and what each would break."""

FILE = "gpt/training/step.py"
TESTS = ["tests/gpt/training/test_not_finite.py"]
MUTATIONS = [
    ("if self._is_finite(step, loss.item(), bool(bad.item())):", "if self._is_finite(step, loss.item(), bool(bad.item())) or True:", "a NaN goes into the weights"),
    ("distributed.any_rank(bad or not math.isfinite(loss))", "distributed.any_rank(not math.isfinite(loss))", "gradients that are not finite go into the weights"),
    ("distributed.any_rank(bad or not math.isfinite(loss))", "(bad or not math.isfinite(loss))", "ranks disagree about a step"),
    ("optimizer.found_inf = self.monitor.found_inf", "pass", "the optimizers of a device step take every update"),
    ("        self.monitor.update(self.number, loss, bad)\n", "", "the update of a device step is not guarded"),
    ("if (step + 1) % self.check_interval == 0:", "if False:", "the host never checks"),
]
