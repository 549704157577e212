"""One-line mutations of `gpt/training/non_finite.py`, and what each would break."""

FILE = "gpt/training/non_finite.py"
TESTS = ["tests/gpt/training/test_not_finite.py"]
MUTATIONS = [
    ("self.skipped += count", "self.skipped += 1", "skipped steps are miscounted"),
    ("distributed.all_reduce_sum(bad + ~loss.isfinite()) > 0", "bad + ~loss.isfinite() > 0", "ranks disagree about a step"),
    ("self.found_inf.copy_(now | stopped)", "self.found_inf.copy_(now)", "training continues after the step that stops it"),
    ("self.found_inf.copy_(now | stopped)", "self.found_inf.copy_(stopped)", "the bad step itself is taken"),
    ("torch.where(now & ~stopped, seen, self._bad)", "torch.where(now, seen, self._bad)", "the step that is named is not the first"),
    ("stopped = (count > 0) & self.stops", "stopped = count > 0", "--nan skip skips every step after a bad one"),
    ("            self._bad.zero_()\n", "            pass\n", "a skipped step is counted at every check"),
]
