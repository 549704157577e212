"""A stranger's files run no code: pickles lie everywhere, and nothing in the source runs them."""

import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

import sample
import train
from gpt.runs import checkpoint
from tests.runs import run

ROOT = Path(__file__).parent.parent
SOURCES = [*ROOT.glob("*.py"), *(ROOT / "gpt").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]


class Planted:
    """Unpickling it makes a folder."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trust")
    assert run(folder / "run", "--keep=1") == 0
    return folder


def sign(folder, path):
    """Have every checkpoint believe that the tensor file is what was saved."""
    for record_path in folder.glob("*.json"):
        record = json.loads(record_path.read_text())
        for file in record.get("files", {}).values():
            if file["name"] == path.name:
                file["sha256"] = checkpoint._sha256_of_file(path)
                record.pop("sha256", None)
                record["sha256"] = checkpoint._sha256_of_record(record)
                record_path.write_text(json.dumps(record))


def kinds(folder):
    """A name for each file of a run, whatever its sha256."""
    return {path.name.split(".", 2)[-1]: path for path in sorted(folder.iterdir())}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # by torch.load, which refuses it
@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL, "torch"])
def test_a_pickle_in_the_place_of_every_file(finished, tmp_path, monkeypatch, protocol):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trace, folder = tmp_path / "it ran", tmp_path / "run"
    trap = tmp_path / "trap"
    if protocol == "torch":
        torch.save(Planted(trace), trap)
    else:
        trap.write_bytes(pickle.dumps(Planted(trace), protocol))
    for name in kinds(finished / "run"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished / "run", folder)
        path = kinds(folder)[name]
        shutil.copyfile(trap, path)
        if path.suffix == ".safetensors":
            sign(folder, path)
        assert train.main(["--resume", "--max-iters=5", f"--out-dir={folder}"]) in (0, 2)
        for which in ("best", "last"):
            options = [f"--out-dir={folder}", f"--checkpoint={which}", "--max-new-tokens=2"]
            assert sample.main([*options, "--device=cpu"]) in (0, 2)
        assert not trace.exists(), name
    for name in ("input.txt", "train.bin", "val.bin", "meta.json", "meta.pkl", "ckpt.pt"):
        data = tmp_path / f"data with a planted {name}"
        data.mkdir()
        for other in ("train.bin", "val.bin"):
            (data / other).write_bytes(bytes(200))
        (data / "meta.json").write_text('{"kind": "byte"}')
        if name == "meta.pkl":
            (data / "meta.json").unlink()
        shutil.copyfile(trap, data / name)
        place = data / name if name == "input.txt" else data
        assert run(tmp_path / "new", f"--data={place}", "--max-iters=1") in (0, 2)
        options = [f"--out-dir={finished / 'run'}", f"--start=FILE:{data / name}", "--device=cpu"]
        assert sample.main(options) in (0, 2)
        assert not trace.exists(), name
    assert run(tmp_path / "new", f"--init-from={trap}", "--max-iters=1") == 2
    assert not trace.exists()
    with trap.open("rb") as file:
        torch.load(file, weights_only=False) if protocol == "torch" else pickle.load(file)
    assert trace.exists()  # the trap was one


# --- the source -----------------------------------------------------------------------------------

FORBIDDEN = {
    *("eval", "exec", "compile", "__import__"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.hub.load"),
    *("marshal.load", "marshal.loads", "yaml.load", "np.load", "numpy.load", "shelve.open"),
    *("os.system", "os.popen", "importlib.import_module", "runpy.run_path"),
}


def calls(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_in_the_source_runs_what_it_reads(path):
    for call in calls(path):
        name, words = ast.unparse(call.func), {w.arg: ast.unparse(w.value) for w in call.keywords}
        assert name not in FORBIDDEN
        assert name != "torch.load" or words.get("weights_only") == "True"  # tensors alone
    assert "http://" not in path.read_text()


@pytest.mark.parametrize("folder", ["gpt", "kernels", "bench", "tests"])
def test_no_shell_is_asked(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for call in calls(path):
            assert not [word for word in call.keywords if word.arg == "shell"], path
            assert ast.unparse(call.func) not in ("os.system", "os.popen"), path
