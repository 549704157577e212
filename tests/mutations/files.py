"""One-line mutations of `gpt/files.py`, and what each would break."""

FILE = "gpt/files.py"
TESTS = ["tests/gpt/runs/test_checkpoint.py", "tests/gpt/runs/test_saving.py"]
MUTATIONS = [
    ("partial = path.with_name(f\"{path.name}.{os.getpid()}.partial\")", "partial = path", "a kill leaves half of a JSON file"),
    ("        flush(partial)\n        os.replace(partial, path)\n        flush", "        os.replace(partial, path)\n        flush", "a power failure leaves a JSON file empty"),
    ("        flush(path.parent)  # makes the rename durable\n", "", "a power failure undoes a checkpoint"),
    ("or status.st_size > LARGEST_JSON", "", "a JSON file of any size is read"),
    ("except (ValueError, RecursionError) as error:", "except ValueError as error:", "a deeply nested JSON file prints a traceback"),
    ("    if not isinstance(record, dict):\n        raise", "    if False:\n        raise", "a list is loaded as a record"),
]
