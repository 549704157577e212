"""The structure of the code is checked, and the check can fail."""

import ast

import pytest

from tests import structure
from tests.structure import ROOT, import_problems, kernel_problems, parse, size_problems


def tree(**sources):
    """Files of a package "gpt" with these sources: config__model is gpt/config/model.py."""
    return {
        ROOT / "gpt" / f"{name.replace('__', '/')}.py": ast.parse(source)
        for name, source in sources.items()
    }


def test_no_import_points_up_or_in_a_circle():
    assert [*import_problems(parse(structure.files()))] == []


def test_kernel_names_are_unique_and_in_the_ledger():
    assert [*kernel_problems()] == []


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            {"data__corpus": "import gpt.training.step", "training__step": ""},
            "gpt.data.corpus must not import gpt.training.step",
        ),
        (
            {"data__corpus": "def f():\n    from gpt.runs import loop", "runs__loop": ""},
            "gpt.data.corpus must not import gpt.runs.loop",
        ),
        ({"models__packed": "from kernels import load"}, "gpt must not import kernels"),
        (
            {"data__a": "from gpt.data import b", "data__b": "from gpt.data.a import x"},
            "circular import: gpt.data.a -> gpt.data.b -> gpt.data.a",
        ),
    ],
)
def test_wrong_imports_are_found(sources, message):
    assert any(message in problem for problem in import_problems(tree(**sources)))


def test_kernels_import_torch_and_triton_alone():
    trees = {ROOT / "kernels" / "norms" / "new.py": ast.parse("import numpy")}
    assert any("must not import numpy" in problem for problem in import_problems(trees))


def test_long_functions_and_crowded_folders_are_found():
    path = ROOT / "gpt" / "files.py"
    long = ast.parse("def long():\n" + "    x = 1\n" * structure.MAX_FUNCTION)
    assert any("long has 61 lines" in problem for problem in size_problems({path: long}))
    crowd = {path.parent / f"file{n}.py": ast.parse("") for n in range(structure.MAX_FILES + 1)}
    assert "gpt: 13 files, more than 12" in [*size_problems(crowd)]
