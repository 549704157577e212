"""A run of a task is reinforced into another run."""

import json
import re

import pytest

import sample
from bench.recipes import reinforce
from gpt.generation.load import load_model
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
def test_the_new_run_can_be_sampled_and_tuned(supervised, tmp_path, capsys, implementation):
    new, options = tmp_path / "new", [*SHORT, f"--kernels={implementation}"]
    capsys.readouterr()
    assert reinforce.main([str(supervised), f"--out-dir={new}", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"addition-1: \S+% of 15 held-out problems answered correctly", lines[0])
    assert re.fullmatch(r"after 3 steps, \d+ s: \S+%", lines[1])
    record = json.loads((new / "best.json").read_text())
    assert record["reinforce"]["steps"] == record["step"] == 3
    assert 0 <= record["reinforce"]["accuracy"] <= 1
    assert tensor_files(new, "best") != tensor_files(supervised, "best")
    before, after = (load_model(each, "best", OPS, "cpu")[0] for each in (supervised, new))
    assert before.config == after.config
    assert sample.main([f"--out-dir={new}", "--device=cpu", "--start=3+4="]) == 0
    assert capsys.readouterr().out.startswith("3+4=")
    options = [*TINY, f"--init-from={new}", "--max-iters=1", "--eval-interval=1"]
    assert run(tmp_path / "tuned", *options, preset="addition") == 0


def test_the_seed_determines_the_run(supervised, tmp_path):
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        arguments = [str(supervised), f"--out-dir={tmp_path / name}", f"--seed={seed}", *SHORT]
        assert reinforce.main(arguments) == 0
    one, same, other = (tensor_files(tmp_path / name, "best") for name in ("one", "same", "other"))
    assert one == same != other
