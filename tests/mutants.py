"""Do the tests notice a mistake? `python -m tests.mutants [--kernel layer_norm ...]`.

`tests/mutations/layer_norm.py` lists one-line mistakes in `kernels/norms/layer_norm.py`:

    MUTATIONS = [(old, new, what it would break), ...]    # `old` occurs exactly once
    TESTS = ["tests/kernels/norms/test_layer_norm.py"]          # by default those of the same name
    FILE = "gpt/runs/checkpoint.py"                            # where it is no kernel of that name

Each is made in a copy of the repository, where the tests then run until one fails. A mutation
that no test notices is printed as a diff, and the exit code is 1.
"""

import argparse
import difflib
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
LEFT_BEHIND = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "out", "*.bin")


def main() -> int:
    kernels = sorted(path.stem for path in LISTS.glob("*.py"))
    parser = argparse.ArgumentParser(description="Make mistakes in kernels; tests must notice.")
    parser.add_argument("--kernel", action="append", choices=kernels, help="default: all")
    arguments = parser.parse_args()
    survivors = sum(survivors_of(kernel) for kernel in arguments.kernel or kernels)
    print(f"{survivors} survivors" if survivors else "every mutation was noticed")
    return 1 if survivors else 0


def survivors_of(kernel: str) -> int:
    """Run all mutations of one kernel, report each, and count those that nothing noticed."""
    module = importlib.import_module(f"tests.mutations.{kernel}")
    tests = getattr(module, "TESTS", None) or [find(f"tests/kernels/**/test_{kernel}.py")]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "repository")
        shutil.copytree(ROOT, copy, ignore=LEFT_BEHIND)
        file = copy / (getattr(module, "FILE", None) or find(f"kernels/**/{kernel}.py"))
        source = file.read_text(encoding="utf-8")
        mutants = [mutate(source, *mutation, file.name) for mutation in module.MUTATIONS]

        begin = time.monotonic()
        failed = first_failure(copy, tests, timeout=None)
        if failed:
            sys.exit(f"{kernel}: without any mutation {failed}; the tests must pass first")
        patience = 60 + 5 * (time.monotonic() - begin)  # a mutation may make a loop endless
        for (*_, reason), mutant in zip(module.MUTATIONS, mutants, strict=True):
            file.write_text(mutant, encoding="utf-8")
            failed = first_failure(copy, tests, patience)
            print(f"{kernel}: {reason}: {failed or 'SURVIVED'}", flush=True)
            if not failed:
                survivors += 1
                print(diff(source, mutant, file.name), flush=True)
    return survivors


def find(pattern: str) -> str:
    """The path of the one file that matches."""
    (path,) = ROOT.glob(pattern)
    return str(path.relative_to(ROOT))


def mutate(source: str, old: str, new: str, reason: str, file: str) -> str:
    if source.count(old) != 1:
        times = source.count(old)
        sys.exit(f"{file}, {reason!r}: {old!r} occurs {times} times and must occur exactly once")
    return source.replace(old, new)


def first_failure(copy: Path, tests: list[str], timeout: float | None) -> str | None:
    """What went wrong first when `tests` ran in `copy`; None if nothing did."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider", *tests]
    try:
        run = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"killed: it ran for more than {timeout:.0f} seconds"
    if run.returncode == 0:
        return None
    test = re.search(r"^(?:FAILED|ERROR) \S*?([^/\s]+\.py\S*)", run.stdout, re.MULTILINE)
    return f"killed by {test.group(1)}" if test else f"killed: exit code {run.returncode}"


def diff(source: str, mutant: str, file: str) -> str:
    lines = source.splitlines(), mutant.splitlines()
    return "\n".join(difflib.unified_diff(*lines, file, file, n=1, lineterm=""))


if __name__ == "__main__":
    sys.exit(main())
