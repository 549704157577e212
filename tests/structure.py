"""Check sizes and kernel names: `python -m tests.structure` (part of `make lint`).

Limits on the lines of folders, files, functions and of all Python: what grows past a limit holds
two ideas. Which package may import which is in pyproject.toml, for import-linter.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_FILES = 12  # Python files in a folder, without __init__.py
MAX_LINES = 350  # in a file
MAX_FUNCTION = 60  # lines of a function that is not a kernel
BUDGET = {"bench": 5_000, "tests": 15_000, "all Python": 31_000}  # lines


def files() -> list[Path]:
    """The Python files that git knows."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in names.split() if (path := ROOT / name).exists()]


def size_problems(sources: dict[Path, str]) -> Iterator[str]:
    """sources: file -> its text. Tests may have longer files and more of them."""
    folders = Counter(path.parent for path in sources if path.name != "__init__.py")
    for folder, count in folders.items():
        if count > MAX_FILES and "tests" not in folder.parts:
            yield f"{folder}: {count} files, more than {MAX_FILES}"
    for path, source in sources.items():
        lines = source.count("\n")
        if lines > MAX_LINES and "tests" not in path.parts:
            yield f"{path}: {lines} lines, more than {MAX_LINES}"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and not is_kernel(node):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > MAX_FUNCTION:
                    yield f"{path}:{node.lineno}: {node.name} has {length} lines"


def is_kernel(node: ast.FunctionDef) -> bool:
    return any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)


def kernel_problems() -> Iterator[str]:
    """A profiler, the sanitizer and the ledger know a kernel by its name alone."""
    kernel = re.compile(r"^def (\w+_kernel)\(", re.MULTILINE)
    sources = [path.read_text() for path in (ROOT / "kernels").rglob("*.py")]
    names = Counter(kernel.findall("".join(sources)))
    for name, count in names.items():
        if count > 1:
            yield f"{count} kernels are named {name}"


def main() -> int:
    sources = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in files()}
    counts: Counter[str] = Counter()
    for path, source in sources.items():
        folder = path.parts[0] if len(path.parts) > 1 else "top level"
        counts += Counter({"all Python": source.count("\n"), folder: source.count("\n")})
    problems = [*size_problems(sources), *kernel_problems()]
    for folder, lines in counts.most_common():
        limit = BUDGET.get(folder, lines)
        print(f"{folder}: {lines:,} lines" + (f" of {limit:,}" if folder in BUDGET else ""))
        if lines > limit:
            problems.append(f"{folder}: {lines:,} lines, more than the budget of {limit:,}")
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
