"""Untrusted checkpoints: any bytes are read as they are or rejected.

Rejecting means raising UserError. Any other exception, a hang, or weights that differ from the file
is a failure.
"""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from gpt import UserError, files
from gpt.config.cli import parse_run
from gpt.generation.load import load_model
from kernels.torch_ops import OPS
from tests.gpt.runs.test_run_state import Run
from tests.runs import sign, sign_tensors

CPU = torch.device("cpu")
KINDS = ("weights", "optimizer", "random")
many = settings(max_examples=100)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("fuzz"))
    run.step(0)
    run.save(improved=True)
    shutil.copytree(run.folder, run.folder.with_name("whole"))
    return run


def restored(run):
    """Restore the folder of the run, for the next case."""
    for path in run.folder.with_name("whole").iterdir():
        shutil.copyfile(path, run.folder / path.name)
    return run.folder


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


def containers(values):
    return st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3)


json_values = st.recursive(leaves, containers, max_leaves=5)


lengths = st.integers(0, 40) | st.just(1 << 20)  # none to all of the bytes


@many
@given(st.integers(0, 1 << 20), lengths, st.binary(max_size=40), st.sampled_from(KINDS))
def test_hostile_tensors_are_rejected_or_loaded_as_they_are(run, place, length, noise, kind):
    folder = restored(run)
    path = next(folder.glob(f"*.{kind}.*"))
    content = path.read_bytes()
    place %= len(content) + 1
    path.write_bytes(content[:place] + noise + content[place + length :])
    sign_tensors(path)
    try:
        model, _, _ = load_model(folder, "best", OPS, CPU)
        Run(folder).restore()
    except UserError:
        return
    kept = load_file(next(folder.glob("*.weights.*")))
    for key, weight in model.state_dict().items():
        assert weight.equal(kept.get(key, kept["token_embedding_table.weight"]))
        assert weight.isfinite().all()


def places(record, outer=()):
    """Every path of keys in a record."""
    for key, value in record.items():
        yield (*outer, key)
        if isinstance(value, dict):
            yield from places(value, (*outer, key))


@many
@given(st.data())
def test_hostile_records_are_rejected_or_give_a_model(run, data):
    folder = restored(run)
    for name in ("best", "last"):
        record = files.read_json(folder / f"{name}.json")
        *outer, key = data.draw(st.sampled_from(sorted(places(record))), label="place")
        inner = record
        for each in outer:
            inner = inner[each]
        old = inner[key]
        near = st.just(-old) | st.just(old * 10**9) if type(old) in (int, float) else st.nothing()
        inner[key] = data.draw(json_values | near, label="value")
        sign(folder / f"{name}.json", record)
    for implementation in (OPS, None):
        try:
            model, tokenizer, _ = load_model(folder, "best", implementation, CPU)
        except UserError:
            continue
        tokens = torch.arange(8)[None] % tokenizer.vocab_size
        assert model(tokens)[0].isfinite().all()
    try:
        parse_run(["--resume", f"--out-dir={folder}"], "quickstart", lambda name: {})
        Run(folder).restore()
    except UserError:
        return
    assert files.read_json(folder / "last.json")["step"] >= 0
