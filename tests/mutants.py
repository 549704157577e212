"""Mutation testing: `python -m tests.mutants [--kernel layer_norm ...]`.

`tests/mutations/layer_norm.py` lists one-line mutations of `kernels/norms/layer_norm.py`:

    MUTATIONS = [(old, new, reason), ...]                # `old` occurs exactly once in the file
    TESTS = ["tests/kernels/norms/test_layer_norm.py"]   # default: the test file of the same name
    FILE = "gpt/runs/checkpoint.py"                      # default: the kernel file of the same name

Each mutation is applied to a copy of the repository, in which the tests run until one fails. A
mutation that no test detects is printed as SURVIVED, and the exit code is 1.
"""

import argparse
import importlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LISTS = ROOT / "tests" / "mutations"
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "out", "*.bin")


def main() -> int:
    kernels = sorted(path.stem for path in LISTS.glob("*.py"))
    parser = argparse.ArgumentParser(description="Mutate kernels; a test must fail each time.")
    parser.add_argument("--kernel", action="append", choices=kernels, help="default: all")
    arguments = parser.parse_args()
    survivors = sum(survivors_of(kernel) for kernel in arguments.kernel or kernels)
    print(f"{survivors} survivors" if survivors else "every mutation was detected")
    return 1 if survivors else 0


def survivors_of(kernel: str) -> int:
    """Try all mutations of one kernel, print each result, and count those not detected."""
    module = importlib.import_module(f"tests.mutations.{kernel}")
    tests = getattr(module, "TESTS", None) or [find(f"tests/kernels/**/test_{kernel}.py")]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "repository")
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        file = copy / (getattr(module, "FILE", None) or find(f"kernels/**/{kernel}.py"))
        source = file.read_text(encoding="utf-8")
        mutants = [mutate(source, *mutation, file.name) for mutation in module.MUTATIONS]

        start = time.monotonic()
        failed = first_failure(copy, tests, timeout=None)
        if failed:
            sys.exit(f"{kernel}: {failed} without any mutation; the tests must pass first")
        timeout = 60 + 5 * (time.monotonic() - start)  # a mutation may cause an endless loop
        for (old, new, reason), mutant in zip(module.MUTATIONS, mutants, strict=True):
            file.write_text(mutant, encoding="utf-8")
            failed = first_failure(copy, tests, timeout)
            print(f"{kernel}: {reason}: {failed or f'SURVIVED: {old!r} -> {new!r}'}", flush=True)
            survivors += not failed
    return survivors


def find(pattern: str) -> str:
    """The path of the only file that matches `pattern`."""
    (path,) = ROOT.glob(pattern)
    return str(path.relative_to(ROOT))


def mutate(source: str, old: str, new: str, reason: str, file: str) -> str:
    if source.count(old) != 1:
        times = source.count(old)
        sys.exit(f"{file}, {reason!r}: {old!r} occurs {times} times, it must occur exactly once")
    return source.replace(old, new)


def first_failure(copy: Path, tests: list[str], timeout: float | None) -> str | None:
    """Run `tests` in `copy`; return what failed first, or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider", *tests]
    try:
        run = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"killed: no result within {timeout:.0f} seconds"
    if run.returncode == 0:
        return None
    test = re.search(r"^(?:FAILED|ERROR) \S*?([^/\s]+\.py\S*)", run.stdout, re.MULTILINE)
    return f"killed by {test.group(1)}" if test else f"killed: exit code {run.returncode}"


if __name__ == "__main__":
    sys.exit(main())
