"""One-line mutations of `gpt/training/gradients.py`, and what each would break."""

FILE = "gpt/training/gradients.py"
TESTS = ["tests/gpt/training/test_not_finite.py", "tests/gpt/training/test_step.py"]
MUTATIONS = [
    ("return (~norm.isfinite()).float()", "return norm.isnan().float()", "infinite gradients are clipped to zero and taken"),
    ("                    loss = loss / plan.passes\n", "                    pass\n", "accumulated gradients are a sum, not a mean"),
    ("(step * self.passes + index)", "(step + index)", "consecutive steps see the same rows"),
    ("            optimizer.zero_grad(set_to_none=True)\n", "            pass\n", "gradients are added to those of the step before"),
]
