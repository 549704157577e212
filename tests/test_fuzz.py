"""A stranger's checkpoints and token files: any bytes are read as they are or refused.

UserError is a sentence. Anything else that is raised, a hang, code that runs, or weights that are
not those of the file would fail here.
"""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from gpt import UserError
from gpt.config.cli import check, train_config_from_json
from gpt.data.corpus import open_data
from gpt.runs import checkpoint
from gpt.runs.metrics import read_metrics
from gpt.runs.run_state import WHOLE, load_model
from kernels.torch_ops import OPS
from tests.gpt.runs.test_run_state import Run

CPU = torch.device("cpu")
# of each kind; --hypothesis-profile=thousand for as many as the soak tries
many = settings(max_examples=max(100, settings().max_examples))


@pytest.fixture(scope="module")
def tried(record_testsuite_property):
    """Counts cases and their bytes, for who asks with --junitxml."""
    counted = Counter()
    yield counted
    for name, count in counted.items():
        record_testsuite_property(name, count)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("fuzz"))
    run.step(0)
    run.save(improved=True)
    shutil.copytree(run.folder, run.folder.with_name("whole"))
    return run


def restored(run):
    """The folder as it was, for the next case."""
    for path in run.folder.with_name("whole").iterdir():
        shutil.copyfile(path, run.folder / path.name)
    return run.folder


@st.composite
def changes(draw):
    """A function that changes bytes: flips, cuts, repeats, or puts others in their place."""
    kind = draw(st.sampled_from(("flip", "cut", "insert", "overwrite", "replace")))
    place, noise = draw(st.integers(0, 1 << 20)), draw(st.binary(min_size=1, max_size=40))

    def change(content):
        at = place % (len(content) + 1)
        if kind == "flip":
            return (
                content[:at]
                + bytes(byte ^ 1 << place % 8 for byte in content[at : at + 1])
                + content[at + 1 :]
            )
        if kind == "cut":
            return content[:at]
        if kind == "insert":
            return content[:at] + noise + content[at:]
        if kind == "overwrite":
            return content[:at] + noise + content[at + len(noise) :]
        return noise

    return change


# numbers, texts, and what stands in a record, in each other's places
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def weights_of(run):
    return dict(run.model.state_dict())


def assert_same_or_refused(run, name, kinds):
    try:
        record, tensors = checkpoint.load(run.folder, name, kinds)
    except UserError:
        return
    whole = checkpoint.load(run.folder.with_name("whole"), name, kinds)
    assert record == whole[0]
    for kind, group in whole[1].items():
        assert tensors[kind].keys() == group.keys()
        assert all(tensors[kind][key].equal(tensor) for key, tensor in group.items())


@many
@given(st.sampled_from(("best.json", "last.json", "weights", "optimizer", "random")), changes())
def test_damaged_files_are_refused_or_as_they_were(run, tried, which, change):
    folder = restored(run)
    path = folder / which if which.endswith("json") else next(folder.glob(f"*.{which}.*"))
    tried.update(cases=1, bytes=path.write_bytes(change(path.read_bytes())))
    assert_same_or_refused(run, "last", WHOLE)
    assert_same_or_refused(run, "best", ("weights",))


def sign(path, record):
    record.pop("sha256", None)
    path.write_text(json.dumps({**record, "sha256": checkpoint._sha256_of_record(record)}))


@many
@given(changes(), st.sampled_from(WHOLE))
def test_hostile_tensors_are_refused_or_those_of_the_file(run, tried, change, kind):
    folder = restored(run)
    path = next(folder.glob(f"*.{kind}.*"))
    tried.update(cases=1, bytes=path.write_bytes(change(path.read_bytes())))
    for name in ("last", "best"):
        record = checkpoint.read_json(folder / f"{name}.json")
        if kind in record["files"]:
            record["files"][kind]["sha256"] = checkpoint._sha256_of_file(path)
            sign(folder / f"{name}.json", record)
    try:
        model, _, _ = load_model(folder, "best", OPS, CPU)
        Run(folder).restore()
    except UserError:
        return
    kept = load_file(next(folder.glob("*.weights.*")))
    for key, weight in model.state_dict().items():
        assert weight.equal(kept.get(key, kept["token_embedding_table.weight"]))
        assert weight.isfinite().all()


def places(record, above=()):
    """Every path of keys in a record."""
    for key, value in record.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


@many
@given(st.data())
def test_hostile_records_are_refused_or_make_a_model(run, tried, data):
    folder = restored(run)
    for name in ("best", "last"):
        record = checkpoint.read_json(folder / f"{name}.json")
        *above, key = data.draw(st.sampled_from(sorted(places(record))), label="place")
        inner = record
        for each in above:
            inner = inner[each]
        old = inner[key]
        near = st.just(-old) | st.just(old * 10**9) if type(old) in (int, float) else st.nothing()
        inner[key] = data.draw(values | near, label="value")
        sign(folder / f"{name}.json", record)
        tried.update(bytes=(folder / f"{name}.json").stat().st_size)
    tried.update(cases=1)
    for implementation in (OPS, None):
        try:
            model, tokenizer, _ = load_model(folder, "best", implementation, CPU)
        except UserError:
            continue
        tokens = torch.arange(8)[None] % tokenizer.vocab_size
        assert model(tokens)[0].isfinite().all()
    try:
        check(train_config_from_json(checkpoint.read_json(folder / "last.json").get("train"), ""))
        reached = Run(folder).restore()
    except UserError:
        return
    assert reached["step"] >= 0


@many
@given(st.binary(max_size=80) | changes(), st.sampled_from(("train.bin", "meta.json", "meta.pkl")))
def test_any_token_file_is_tokens_or_refused(tmp_path_factory, tried, change, name):
    folder = tmp_path_factory.getbasetemp() / "tokens"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    header = np.array([20240520, 1, 30], "<i4").tobytes().ljust(1024, b"\0")
    (folder / "train.bin").write_bytes(header + bytes(60))
    (folder / "val.bin").write_bytes(bytes(60))
    (folder / ("meta.pkl" if name == "meta.pkl" else "meta.json")).write_bytes(
        b"\x80\x04}\x94\x8c\x04itos\x94}\x94K\x00\x8c\x01a\x94ss."
        if name == "meta.pkl"
        else b'{"kind": "char", "characters": "ab"}'
    )
    path = folder / name
    content = change if isinstance(change, bytes) else change(path.read_bytes())
    tried.update(cases=1, bytes=path.write_bytes(content))
    try:
        data = open_data(str(folder), "data", "char")
    except UserError:
        return
    for tokens in (data.train, data.val):
        assert len(tokens) >= 2
        assert tokens.int().max() < data.tokenizer.vocab_size
        assert data.tokenizer.decode(tokens.tolist())


@many
@given(st.binary(max_size=80) | changes())
def test_any_metrics_are_lines_or_left_out(tmp_path_factory, tried, change):
    folder = tmp_path_factory.getbasetemp()
    content = b'{"step": 1, "loss": 2.5}\n{"step": 2, "val_loss": null}\n'
    content = change if isinstance(change, bytes) else change(content)
    tried.update(cases=1, bytes=(folder / "metrics.jsonl").write_bytes(content))
    assert all(type(line["step"]) is int for line in read_metrics(folder))
