"""One-line mistakes in what `gpt/training/step.py` does about numbers gone bad, and what each would break."""

FILE = "gpt/training/step.py"
TESTS = ["tests/gpt/training/test_not_finite.py"]
MUTATIONS = [
    ("        if self.is_good(step, loss, bad):\n", "        if self.is_good(step, loss, bad) or True:\n", "a NaN goes into the weights"),
    ("ranks.any_rank(bad or not math.isfinite(loss))", "ranks.any_rank(not math.isfinite(loss))", "gradients that are not finite go into the weights"),
    ("ranks.any_rank(bad or not math.isfinite(loss))", "(bad or not math.isfinite(loss))", "ranks disagree about a step"),
    ("self.skipped += count", "self.skipped += 1", "skipped steps are miscounted"),
    ("optimizer.found_inf = self.found_inf", "pass", "a graph's optimizers hear of nothing"),
    ("        self.guard(loss, bad)\n", "", "an update on a card is not guarded"),
    ("ranks.total(bad + ~loss.isfinite()) > 0", "bad + ~loss.isfinite() > 0", "ranks that run ahead disagree about a step"),
    ("return (~norm.isfinite()).float()", "return norm.isnan().float()", "infinite gradients are clipped to nothing and taken"),
    ("self.found_inf.copy_(now | stopped)", "self.found_inf.copy_(now)", "a graph goes on training after the step that stops it"),
    ("self.found_inf.copy_(now | stopped)", "self.found_inf.copy_(stopped)", "the bad step itself is taken"),
    ("torch.where(now & ~stopped, said, self.unsaid)", "torch.where(now, said, self.unsaid)", "the step that is named is not the first"),
    ("& (self.config.nan == \"stop\")", "& True", "--nan skip skips everything after one bad step"),
    ("if (step + 1) % self.config.log_interval == 0:", "if False:", "the host never asks"),
    ("            self.unsaid.zero_()\n", "", "a skipped step counts at every line"),
]
