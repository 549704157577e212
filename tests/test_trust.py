"""Untrusted files cannot run code: pickles in place of every file, and a scan of the source."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

import sample
import train
from tests.runs import run, sign_tensors

ROOT = Path(__file__).parent.parent
SOURCES = [*ROOT.glob("*.py"), *(ROOT / "gpt").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]


class Planted:
    """Unpickling it creates the folder `trace`."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def by_kind(folder):
    """The files of a run by their names without step and sha256."""
    return {path.name.split(".", 2)[-1]: path for path in sorted(folder.iterdir())}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # by torch.load, before it raises
@pytest.mark.parametrize("protocol", [0, pickle.HIGHEST_PROTOCOL, "torch"])
def test_a_pickle_in_place_of_any_file_is_not_executed(trained, tmp_path, monkeypatch, protocol):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trace, folder, trap = tmp_path / "executed", tmp_path / "run", tmp_path / "trap"
    if protocol == "torch":
        torch.save(Planted(trace), trap)
    else:
        trap.write_bytes(pickle.dumps(Planted(trace), protocol))
    for name in by_kind(trained / "run"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained / "run", folder)
        path = by_kind(folder)[name]
        shutil.copyfile(trap, path)
        if path.suffix == ".safetensors":
            sign_tensors(path)
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
        options = [f"--out-dir={trained / 'run'}", f"--start=FILE:{data / name}", "--device=cpu"]
        assert sample.main(options) in (0, 2)
        assert not trace.exists(), name
    assert run(tmp_path / "new", f"--init-from={trap}", "--max-iters=1") == 2
    assert not trace.exists()
    with trap.open("rb") as file:
        torch.load(file, weights_only=False) if protocol == "torch" else pickle.load(file)
    assert trace.exists()  # loading it in an unsafe way does run the code


def test_the_source_loads_no_pickles_and_downloads_by_https():
    """ruff rejects pickle, eval, exec and shells (pyproject.toml); it does not know these."""
    for path in SOURCES:
        text = path.read_text()
        for unsafe in ("weights_only=False", "allow_pickle=True", "torch.hub", "http://"):
            assert unsafe not in text, path
