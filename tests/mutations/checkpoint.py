"""One-line mutations of `gpt/runs/checkpoint.py`, and what each would break."""

FILE = "gpt/runs/checkpoint.py"
TESTS = ["tests/gpt/runs/test_checkpoint.py", "tests/gpt/runs/test_saving.py"]
MUTATIONS = [
    ("        flush(partial)\n        digest", "        digest", "a power failure leaves the tensors empty"),
    ("        flush(folder)  # makes the file names durable before a JSON file refers to them\n", "", "a power failure leaves a record whose tensor files have no name"),
    ("{record['step']:07d}.{digest[:16]}.{kind}", "{record['step']:07d}.0123456789abcdef.{kind}", "a file that another checkpoint refers to is overwritten"),
    ("    finally:\n        with contextlib.suppress(OSError):\n            _remove_unnamed(folder)", "    finally:\n        pass", "the files of old checkpoints fill the disk"),
    ("return  # the files of a damaged checkpoint are kept", "continue", "the files of a damaged checkpoint are removed"),
    ("if TENSOR_FILE.fullmatch(path.name) and path.name not in named:", "if path.name not in named:", "files that are not of a checkpoint are removed"),
    ("if version != VERSION:", "if False:", "a record of another version is loaded"),
    ("if _sha256_of_record(record) != expected:", "if False:", "a damaged record is loaded"),
    ("if _sha256_of_file(tensor_path) != expected:", "if False:", "damaged tensors are loaded"),
    ("if not isinstance(name, str) or not TENSOR_FILE.fullmatch(name):", "if not isinstance(name, str):", "a record may name a file outside its folder"),
    ("not TENSOR_FILE.fullmatch(name)", "not TENSOR_FILE.search(name)", "a record may name a file of another folder"),
    ("if not stat.S_ISREG(tensor_path.stat().st_mode):", "if False:", "a folder is read as a tensor file"),
    ("if _read_record(path) == record:", "if True:", "a checkpoint that is replaced while it is read is reported as damaged"),
]
