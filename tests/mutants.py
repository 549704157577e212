"""Mutation testing: `python -m tests.mutants [--file layer_norm ...] [--check]`.

`tests/mutations/layer_norm.txt` lists one-line mistakes, what each would break, and the tests:

    file: kernels/norms/layer_norm.py
    test: tests/kernels/norms/test_layer_norm.py

    y *= weight => y += weight | the weight is added

The text before "=>" occurs exactly once in the file; a line break in it is written as \\n. Each
mutation is applied to a copy of the repository, in which the tests run until one fails. A mutation
that no test detects is printed as SURVIVED, and the exit code is 1. `--check` runs no tests: it
only looks for every text in its file.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LISTS = ROOT / "tests" / "mutations"
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "out", "*.bin")


class Mutation(NamedTuple):
    old: str
    new: str
    reason: str


def main() -> int:
    names = sorted(path.stem for path in LISTS.glob("*.txt"))
    parser = argparse.ArgumentParser(description="Mutate the code; a test must fail each time.")
    parser.add_argument("--file", action="append", choices=names, help="default: all")
    parser.add_argument("--check", action="store_true", help="only look for the texts to replace")
    arguments = parser.parse_args()
    survivors = 0
    for name in arguments.file or names:
        file, tests, mutations = read(name)
        mutants = [mutate(file, mutation) for mutation in mutations]
        if not arguments.check:
            survivors += survivors_of(file, tests, dict(zip(mutations, mutants, strict=True)))
    if not arguments.check:
        print(f"{survivors} survivors" if survivors else "every mutation was detected")
    return 1 if survivors else 0


def read(name: str) -> tuple[str, list[str], list[Mutation]]:
    """The mutated file, its tests, and its mutations."""
    head, _, body = (LISTS / f"{name}.txt").read_text(encoding="utf-8").partition("\n\n")
    fields = [line.split(": ", 1) for line in head.splitlines()]
    file, tests, mutations = fields[0][1], [value for key, value in fields if key == "test"], []
    for line in body.splitlines():
        change, _, reason = line.rpartition(" | ")
        old, _, new = change.replace("\\n", "\n").partition(" => ")
        mutations.append(Mutation(old, new, reason))
    return file, tests, mutations


def mutate(file: str, mutation: Mutation) -> str:
    source = (ROOT / file).read_text(encoding="utf-8")
    times = source.count(mutation.old)
    if times != 1 or not mutation.old:
        sys.exit(f"{file}: {mutation.old!r} occurs {times} times; it must occur exactly once")
    return source.replace(mutation.old, mutation.new)


def survivors_of(file: str, tests: list[str], mutants: dict[Mutation, str]) -> int:
    """Try all mutations of one file, print each result, and count those not detected."""
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "repository")
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        start = time.monotonic()
        failed = first_failure(copy, tests, timeout=None)
        if failed:
            sys.exit(f"{file}: {failed} without any mutation; the tests must pass first")
        timeout = 60 + 5 * (time.monotonic() - start)  # a mutation may cause an endless loop
        for (old, new, reason), mutant in mutants.items():
            (copy / file).write_text(mutant, encoding="utf-8")
            failed = first_failure(copy, tests, timeout)
            print(f"{file}: {reason}: {failed or f'SURVIVED: {old!r} -> {new!r}'}", flush=True)
            survivors += not failed
    return survivors


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
