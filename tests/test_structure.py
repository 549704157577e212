"""The structure of the code is checked, and the check of sizes can fail."""

from pathlib import Path

from importlinter.cli import lint_imports

from tests import structure


def test_imports_keep_the_contracts_of_pyproject():
    assert lint_imports(str(structure.ROOT / "pyproject.toml"), no_cache=True) == 0


def test_kernel_names_are_unique_and_in_the_ledger():
    assert [*structure.kernel_problems()] == []


def test_long_functions_and_crowded_folders_are_found():
    long = "def long():\n" + "    x = 1\n" * structure.MAX_FUNCTION
    crowd = {Path("gpt", f"file{number}.py"): long for number in range(structure.MAX_FILES + 1)}
    crowded, *problems = structure.size_problems(crowd)
    assert crowded == "gpt: 13 files, more than 12"
    assert problems[0] == "gpt/file0.py:1: long has 61 lines"
    assert [*structure.size_problems({Path("kernels", "x.py"): f"@triton.jit\n{long}"})] == []
