"""The structure of the code: what imports what, and the names of kernels."""

from importlinter.cli import lint_imports

from tests import structure


def test_imports_keep_the_contracts_of_pyproject():
    assert lint_imports(str(structure.ROOT / "pyproject.toml"), no_cache=True) == 0


def test_kernel_names_are_unique_and_in_the_ledger():
    assert [*structure.kernel_problems()] == []
