"""The library shares an environment with Hugging Face's package `kernels`, and so does a clone."""

import shutil
import subprocess
import sys
import venv

import pytest

from bench.results import REPOSITORY
from gpt.pretrained import export
from kernels import namesake
from tests.runs import run

INSTALLED = """
import gpt_kernels, kernels, torch

x = torch.randn(3, 5, device="cuda" if torch.cuda.is_available() else "cpu")
weight = torch.ones_like(x[0])
expected = torch.nn.functional.layer_norm(x, (5,), weight)
for operation in (gpt_kernels.layer_norm, gpt_kernels.load("torch").layer_norm):
    torch.testing.assert_close(operation(x, weight, None), expected)
print(kernels.get_kernel.__module__, gpt_kernels.__file__, gpt_kernels.namesake.report())
"""
IN_THE_CLONE = """
import sys
from pathlib import Path
import kernels

sys.modules["huggingface_hub"] = None  # their package needs it
try:
    from kernels import get_kernel
except ImportError as error:
    print(error)
del sys.modules["huggingface_hub"]

import gpt_kernels, kernels.layer.mode, kernels.load, torch
from gpt.generation.load import load_model
from kernels import doctor, get_kernel, torch_ops
from transformers import GPT2LMHeadModel
from transformers.integrations import hub_kernels

assert hub_kernels.get_kernel_hub is get_kernel
assert kernels.load("torch") is torch_ops.OPS  # not replaced by their submodule `load`
assert gpt_kernels.__file__ != kernels.__file__
assert not hasattr(kernels, "nothing")
ours, *_ = load_model(Path(sys.argv[1]), "best", torch_ops.OPS, "cpu")
theirs = GPT2LMHeadModel.from_pretrained(sys.argv[2]).eval()
tokens = torch.arange(8)[None]
with torch.no_grad():
    torch.testing.assert_close(theirs(tokens).logits, ours(tokens)[0], atol=1e-5, rtol=1e-5)
print(doctor.report())
"""


def contents(site, without="nothing"):
    """A hash of each file, but for those of a package."""
    files = [path for path in site.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    hashes = {str(path.relative_to(site)): hash(path.read_bytes()) for path in files}
    return {name: hashed for name, hashed in hashes.items() if not name.startswith(without)}


def environment_with_their_package(folder, fitting):
    """A virtual environment that also sees the packages of this one: its Python, site-packages."""
    venv.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    visible = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "visible.pth").write_text("\n".join(visible))
    version, theirs = namesake.installed()
    for source in (theirs, *theirs.parent.glob("kernels-*.dist-info")):
        shutil.copytree(source, site / source.name)
    (about,) = site.glob("kernels-*.dist-info/METADATA")
    about.write_text(about.read_text().replace(f"Version: {version}\n", f"Version: {fitting}\n"))
    return folder / "bin" / "python", site


@pytest.mark.skipif(not namesake.installed(), reason="Hugging Face's kernels is not installed")
def test_the_library_and_the_clone_get_along_with_their_package(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers.utils.import_utils")
    version = transformers.KERNELS_MIN_VERSION  # it does not import an older one
    python, site = environment_with_their_package(tmp_path / "venv", version)
    source = tmp_path / "source"  # a build leaves files in its folder
    shutil.copytree(REPOSITORY / "kernels", source / "kernels")
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, source)
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def succeed(*command, cwd=tmp_path):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, cwd=cwd, **pipes)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def pip(*arguments):
        succeed(sys.executable, "-m", "pip", f"--python={python}", *arguments)

    install = ("install", "--no-index", "--no-deps", "--no-build-isolation")
    before = contents(site)
    pip(*install, source)
    assert contents(site, without="gpt_kernels") == before
    module, file, report = succeed(python, "-c", INSTALLED).split(maxsplit=2)
    assert (module, file) == ("kernels.load", str(site / "gpt_kernels" / "__init__.py"))
    assert report.startswith(f"Hugging Face's kernels {version} ({site / 'kernels'}); gpt-kernels")

    trained, exported = tmp_path / "run", tmp_path / "exported"
    assert run(trained) == export.main([str(trained), str(exported)]) == 0
    printed = succeed(python, "-c", IN_THE_CLONE, trained, exported, cwd=REPOSITORY)
    sentence, report = printed.split("\n", 1)
    assert "cannot be loaded" in sentence
    for text in (sentence, report.partition("import kernels")[2].partition("\n")[0]):
        assert f"gpt-kernels ({REPOSITORY / 'kernels'})" in text
        assert f"kernels {version} ({site / 'kernels'})" in text

    pip("uninstall", "--yes", "gpt-kernels")
    assert contents(site) == before


def test_an_unknown_name_mentions_their_package(monkeypatch):
    monkeypatch.setattr(namesake, "installed", lambda: None)
    assert namesake.report() is None
    with pytest.raises(AttributeError, match=r"no attribute 'get_kernel'.*pip install kernels"):
        namesake.attribute("get_kernel")
