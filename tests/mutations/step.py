"""One-line mistakes in what `gpt/step.py` does about numbers gone bad, and what each would break."""

FILE = "gpt/step.py"
TESTS = ["tests/gpt/test_not_finite.py"]
MUTATIONS = [
    ("        if self.is_good(step, loss, norm):\n", "        if self.is_good(step, loss, norm) or True:\n", "a NaN goes into the weights"),
    ("finite = bool((loss + norm).isfinite())", "finite = bool(loss.isfinite())", "gradients that are not finite go into the weights"),
    ("if not ranks.any_rank(not finite):", "if finite:", "ranks disagree about a step"),
    ("self.skipped += count", "self.skipped += 1", "skipped steps are miscounted"),
    ("optimizer.found_inf = self.found_inf", "pass", "a graph's optimizers hear of nothing"),
    ("        self.guard(loss, norm)\n", "", "a graph's update is not guarded"),
    ("self.found_inf.copy_(bad | stopped)", "self.found_inf.copy_(bad)", "a graph goes on training after the step that stops it"),
    ("self.found_inf.copy_(bad | stopped)", "self.found_inf.copy_(stopped)", "the bad step itself is taken"),
    ("bad = ~(loss + norm).isfinite() & ~stopped", "bad = ~(loss + norm).isfinite()", "the step that is named is not the first"),
    ("& (self.config.nan == \"stop\")", "& True", "--nan skip skips everything after one bad step"),
    ("if (step + 1) % self.config.log_interval == 0:", "if False:", "the host never asks"),
    ("            self.bad.zero_()\n", "", "a skipped step counts at every line"),
]
