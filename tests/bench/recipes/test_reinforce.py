"""bench.recipes.reinforce: a run of a task becomes another run, and what is refused leaves nothing."""

import json
import re

import pytest

import sample
from bench.recipes import reinforce
from gpt.runs.run_state import load_model
from kernels.torch_ops import OPS
from tests.runs import run, tensor_files

TINY = ["--data=addition-1", "--n-layer=1", "--n-head=1", "--n-embd=32", "--block-size=8"]
TINY += ["--batch-size=64", "--max-iters=60", "--eval-interval=60"]
SHORT = ["--steps=3", "--problems=16", "--group=4", "--device=cpu"]


@pytest.fixture(scope="module")
def supervised(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reinforce") / "supervised"
    assert run(folder, *TINY, preset="addition") == 0
    return folder


@pytest.mark.parametrize("implementation", ["torch", "reference"])
def test_a_run_becomes_another_that_speaks_and_begins_others(
    supervised, tmp_path, capsys, implementation
):
    new, options = tmp_path / "new", [*SHORT, f"--kernels={implementation}"]
    capsys.readouterr()
    assert reinforce.main([str(supervised), f"--out-dir={new}", *options]) == 0
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"addition-1: \S+% of 15 held-out problems are right", said[0])
    assert re.fullmatch(r"after 3 steps, \d+ s: \S+%", said[1])
    record = json.loads((new / "best.json").read_text())
    assert record["reinforce"]["steps"] == record["step"] == 3
    assert 0 <= record["reinforce"]["accuracy"] <= 1
    assert tensor_files(new, "best") != tensor_files(supervised, "best")
    before, after = (load_model(each, "best", OPS, "cpu")[0] for each in (supervised, new))
    assert before.config == after.config
    assert sample.main([f"--out-dir={new}", "--device=cpu", "--start=3+4="]) == 0
    assert capsys.readouterr().out.startswith("3+4=")
    options = [*TINY, f"--init-from={new}", "--max-iters=1", "--eval-interval=1"]
    assert run(tmp_path / "on", *options, preset="addition") == 0


def test_the_same_seed_is_the_same_run(supervised, tmp_path):
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        arguments = [str(supervised), f"--out-dir={tmp_path / name}", f"--seed={seed}", *SHORT]
        assert reinforce.main(arguments) == 0
    one, same, other = (tensor_files(tmp_path / name, "best") for name in ("one", "same", "other"))
    assert one == same != other


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--steps=0"], "--steps must be at least 1"),
        (["--group=1"], "--group must be at least 2"),
        (["--learning-rate=-1"], "--learning-rate must be a number of at least 0"),
        (["--kernels=other"], "kernels"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_wrong_options(supervised, tmp_path, capsys, options, sentence):
    assert reinforce.main([str(supervised), f"--out-dir={tmp_path / 'new'}", *options]) == 2
    refused(capsys, sentence)
    assert not (tmp_path / "new").exists()


def test_wrong_runs(supervised, tmp_path, capsys):
    new = f"--out-dir={tmp_path / 'new'}"
    assert reinforce.main([]) == 2
    refused(capsys, "RUN --out-dir NEW")
    assert reinforce.main([str(tmp_path / "none"), new]) == 2
    refused(capsys, "is there a run")
    assert reinforce.main([str(supervised), f"--out-dir={supervised}"]) == 2
    refused(capsys, "supervised is there already; give another --out-dir")
    (tmp_path / "file").write_text("")
    assert reinforce.main([str(supervised), f"--out-dir={tmp_path / 'file'}"]) == 2
    refused(capsys, "file cannot be made: File exists")
    assert run(tmp_path / "prose", "--max-iters=1") == 0
    assert reinforce.main([str(tmp_path / "prose"), new, "--device=cpu"]) == 2
    refused(capsys, "no task's: no reward is known")
    assert not (tmp_path / "new").exists()


def refused(capsys, sentence):
    said = capsys.readouterr().err
    assert said.startswith("bench.recipes.reinforce: ")
    assert sentence in said
    assert said.count("\n") == 1
