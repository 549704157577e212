"""One-line mistakes in `gpt/runs/metrics.py`, and what each would break."""

FILE = "gpt/runs/metrics.py"
TESTS = ["tests/gpt/runs/test_metrics.py"]
MUTATIONS = [
    ("fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", "two runs in one folder"),
    ("fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB", "a lock that many may hold"),
    ("        remove_partial(folder)\n", "", "what killed processes leave fills the disk"),
    ("if not resume and (folder", "if (folder", "the run that is resumed is moved away"),
    ("if not resume and (folder / \"config.json\").exists():", "if False:", "an earlier run is written over"),
    ("if metric[\"step\"] <= resume_at", "if True", "steps that are taken again stand there twice"),
    ("raise UserError(f\"--out-dir {folder} cannot be used: {error.strerror}\") from None", "raise", "a folder that cannot be one is a traceback"),
    ("with contextlib.suppress(ValueError, RecursionError):", "with contextlib.suppress(ValueError):", "a deep line is a traceback"),
    ("None if isinstance(value, float) and not math.isfinite(value) else value", "value", "NaN, which is no JSON"),
]
