"""One-line mutations of `gpt/runs/run_folder.py`, and what each would break."""

FILE = "gpt/runs/run_folder.py"
TESTS = ["tests/gpt/runs/test_run_folder.py"]
MUTATIONS = [
    ("fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", "two runs use one folder"),
    ("fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB", "several processes hold the lock"),
    ("            remove_partial(folder)\n", "", "the files of killed processes fill the disk"),
    ("if not resume and (folder", "if (folder", "the run that is resumed is renamed"),
    ("if not resume and (folder / \"config.json\").exists():", "if False:", "an earlier run is overwritten"),
    ("raise UserError(f\"--out-dir {folder} is not usable: {error.strerror}\") from None", "raise", "a path that cannot be a folder prints a traceback"),
]
