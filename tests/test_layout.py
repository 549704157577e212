"""The plan of the house: who may import whom, and how long a file may be."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STANDARD = set(sys.stdlib_module_names)


def files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path):
    """Top-level names of the packages that a file imports, wherever in it the statements stand."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            own = path.relative_to(ROOT).parts[0]  # of a relative import
            found.add(own if node.level else node.module.split(".")[0])
    return found


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", files("gpt"), ids=name)
def test_gpt_does_not_know_the_kernels(path):
    assert not imports(path) & {"kernels", "triton", "bench", "tests", "train", "sample"}
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "triton" in line.lower()] == []


@pytest.mark.parametrize("path", files("kernels"), ids=name)
def test_kernels_import_torch_triton_and_the_standard_library(path):
    interpreted = {"numpy"} if path.name == "interpreter.py" else set()  # it is Triton's own
    assert imports(path) <= {"kernels", "torch", "triton"} | interpreted | STANDARD


def test_every_kernel_has_a_name_of_its_own():
    """A profiler knows kernels by nothing else."""
    kernel = re.compile(r"^def (\w+_kernel)\(", re.MULTILINE)
    names = [name for path in files("kernels") for name in kernel.findall(path.read_text())]
    assert len(names) == len(set(names))
    rows = json.loads((ROOT / "bench/ledger/ledger.json").read_text())
    launched = {row["key"].partition("(")[0] for of_version in rows.values() for row in of_version}
    assert launched <= set(names)


@pytest.mark.parametrize(
    "path", [ROOT / "gpt/models/packed.py", ROOT / "gpt/models/reference.py"], ids=name
)
def test_the_models_import_torch_alone(path):
    assert imports(path) <= {"gpt", "torch"}


@pytest.mark.parametrize(
    "path",
    sorted(ROOT.glob("*.py")) + files("gpt") + files("kernels") + files("bench"),
    ids=name,
)
def test_a_file_holds_one_idea(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 350, f"{lines} lines: it holds two"
