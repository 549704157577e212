"""One-line mutations of `gpt/runs/metrics.py`, and what each would break."""

FILE = "gpt/runs/metrics.py"
TESTS = ["tests/gpt/runs/test_metrics.py"]
MUTATIONS = [
    ("if metric[\"step\"] <= (resume_at or 0)]", "if True]", "steps that are taken again are listed twice"),
    ("with contextlib.suppress(ValueError, RecursionError):", "with contextlib.suppress(ValueError):", "a deeply nested line prints a traceback"),
    ("None if isinstance(value, float) and not math.isfinite(value) else value", "value", "NaN is written, which is not JSON"),
    ("if n not in (\"step\", \"sample\")", "if n != \"step\"", "samples are sent to the tracker"),
]
