"""One-line mistakes in `gpt/runs/checkpoint.py`, and what each would break."""

FILE = "gpt/runs/checkpoint.py"
TESTS = ["tests/gpt/runs/test_checkpoint.py", "tests/gpt/runs/test_saving.py"]
MUTATIONS = [
    ("        _flush(partial)\n        digest", "        digest", "tensors that a power cut leaves empty"),
    ("        _flush(folder)  # the files' names, before a json that relies on them\n", "", "a json whose tensor files have no name yet"),
    ("{record['step']:07d}.{digest[:16]}.{kind}", "{record['step']:07d}.0123456789abcdef.{kind}", "a file that another checkpoint relies on is written over"),
    ("partial = path.with_name(f\"{path.name}.{os.getpid()}.partial\")", "partial = path", "half a json in the place of the old one"),
    ("        _flush(partial)\n        os.replace(partial, path)\n        _flush", "        os.replace(partial, path)\n        _flush", "a json that a power cut leaves empty"),
    ("        _flush(path.parent)  # the new name itself\n", "", "a checkpoint that a power cut takes back"),
    ("    finally:\n        with contextlib.suppress(OSError):\n            _remove_unnamed(folder)", "    finally:\n        pass", "the files of old checkpoints fill the disk"),
    ("return  # of a damaged checkpoint nothing is thrown away", "continue", "the files of a damaged checkpoint go"),
    ("if TENSOR_FILE.fullmatch(path.name) and path.name not in named:", "if path.name not in named:", "a stranger's files go"),
    ("if version != VERSION:", "if False:", "another version is read as this one"),
    ("if _sha256_of_record(record) != expected:", "if False:", "a damaged record is believed"),
    ("if _sha256_of_file(tensor_path) != expected:", "if False:", "damaged tensors are believed"),
    ("if not isinstance(name, str) or not TENSOR_FILE.fullmatch(name):", "if not isinstance(name, str):", "a record reaches out of its folder"),
    ("not TENSOR_FILE.fullmatch(name)", "not TENSOR_FILE.search(name)", "a name with a folder before it"),
    ("if not stat.S_ISREG(tensor_path.stat().st_mode):", "if False:", "a folder as a tensor file"),
    ("or status.st_size > LARGEST_JSON", "", "a json of any size is read"),
    ("except (ValueError, RecursionError) as error:", "except ValueError as error:", "a deep json is a traceback"),
    ("    if not isinstance(record, dict):\n        raise", "    if False:\n        raise", "a list as a record"),
    ("if _read_record(path) == record:", "if True:", "a reader beside the run finds a checkpoint damaged that was replaced"),
]
