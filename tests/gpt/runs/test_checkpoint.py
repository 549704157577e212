"""Checkpoints: what comes back, what is refused, and that none is ever half there."""

import json
import os
import threading

import pytest
import torch
from safetensors.torch import save_file

from gpt import UserError
from gpt.runs import checkpoint
from gpt.runs.checkpoint import load, save
from tests.gpt.runs.saving import KINDS, save_step, step_of, tensors_of


def names_in(folder):
    return sorted(path.name.split(".")[-2] for path in folder.iterdir())


# --- what comes back ------------------------------------------------------------------------------


def test_record_and_tensors_come_back(tmp_path):
    more = {"loss": 0.1 + 0.2, "nested": {"é": [1, None, True]}, "infinite": float("inf")}
    save_step(tmp_path, 3, **more)
    assert step_of(tmp_path, "last") == 3
    assert step_of(tmp_path, "best", ("weights",)) == 3
    record, _ = load(tmp_path, "last")
    assert {name: record[name] for name in more} == more
    assert record["version"] == 1
    assert "optimizer" not in load(tmp_path, "best")[0]["files"]


def test_checkpoints_share_files_and_old_ones_go(tmp_path):
    save_step(tmp_path, 1)
    assert names_in(tmp_path) == ["best", "last", "optimizer", "random", "weights"]
    save_step(tmp_path, 2, {"last": KINDS})
    assert step_of(tmp_path, "best", ("weights",)) == 1
    assert step_of(tmp_path, "last") == 2
    save_step(tmp_path, 3)
    assert names_in(tmp_path) == ["best", "last", "optimizer", "random", "weights"]


def test_a_step_may_be_saved_again_with_other_content(tmp_path):
    save_step(tmp_path, 1)
    tensors = tensors_of(1)
    tensors["weights"]["b"] += 1
    save(tmp_path, {"last": KINDS}, tensors, {"step": 1})
    assert step_of(tmp_path, "best", ("weights",)) == 1
    assert load(tmp_path, "last")[1]["weights"]["b"].equal(tensors["weights"]["b"])


def test_strided_and_empty_tensors(tmp_path):
    tensors = {"weights": {"t": torch.arange(6.0).view(2, 3).mT, "none": torch.empty(0, 4)}}
    save(tmp_path, {"last": ("weights",)}, tensors, {"step": 0})
    _, loaded = load(tmp_path, "last")
    assert loaded["weights"]["t"].equal(tensors["weights"]["t"])
    assert loaded["weights"]["none"].shape == (0, 4)


def test_files_of_others_stay(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "mine.safetensors")
    (tmp_path / "notes.json").write_text("no json")
    save_step(tmp_path, 1)
    save_step(tmp_path, 2)
    assert (tmp_path / "mine.safetensors").exists()
    assert len(list(tmp_path.glob("*.weights.safetensors"))) == 2  # for a damaged json may name one
    (tmp_path / "notes.json").unlink()
    save_step(tmp_path, 3)
    assert len(list(tmp_path.glob("*.weights.safetensors"))) == 1
    assert (tmp_path / "mine.safetensors").exists()


def test_nothing_is_pickled(tmp_path):
    save_step(tmp_path, 1)
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert b"\x80\x02" not in content[:2]
        assert path.suffix in (".json", ".safetensors")
        if path.suffix == ".json":
            json.loads(content)


def test_a_reader_at_work_while_checkpoints_are_replaced(tmp_path):
    save_step(tmp_path, 0)
    writing = threading.Thread(target=lambda: [save_step(tmp_path, s) for s in range(1, 40)])
    writing.start()
    seen = set()
    while writing.is_alive():
        record, tensors = load(tmp_path, "last", KINDS)
        assert (tensors["weights"]["a.weight"] == record["step"]).all()
        seen.add(record["step"])
    writing.join()
    assert len(seen) > 1


# --- what is refused ------------------------------------------------------------------------------


def rewrite(path, change):
    """Change the record of a checkpoint as someone would who knows of its sha256."""
    record = json.loads(path.read_text())
    change(record)
    record.pop("sha256")
    record["sha256"] = checkpoint._sha256_of_record(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b"{}", "has version None"),
        (b'{"version": 2}', "has version 2, and this program reads version 1"),
        (b'{"version": 1}', "is damaged: its sha256"),
        (b'{"version": 1, "sha256": {}}', "is damaged: its sha256"),
    ],
)
def test_a_json_that_is_no_checkpoint(tmp_path, content, sentence):
    (tmp_path / "last.json").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        load(tmp_path, "last")


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(UserError, match="does not exist; is there a run in"):
        load(tmp_path, "last")
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "nowhere", "last")


def test_a_json_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "last.json")  # reading it would wait for ever
    (tmp_path / "best.json").mkdir()
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(checkpoint.LARGEST_JSON + 1)  # zeros that take no room
    for name in ("last", "best", "large"):
        with pytest.raises(UserError, match="is no file"):
            load(tmp_path, name)


@pytest.mark.parametrize("nested", [500, 900, 1000, 5000])
def test_a_deep_record_is_refused_or_read(tmp_path, nested):
    save_step(tmp_path, 1)
    text = (tmp_path / "last.json").read_text()
    deep = '"deep": ' + "[" * nested + "]" * nested
    (tmp_path / "last.json").write_text(text.replace('"step"', deep + ', "step"'))
    with pytest.raises(UserError):
        load(tmp_path, "last")


def test_a_flipped_bit_in_every_byte_of_the_record_is_noticed(tmp_path):
    save_step(tmp_path, 1, loss=0.5)
    path = tmp_path / "last.json"
    whole = path.read_bytes()
    for place, byte in enumerate(whole):
        flipped = bytes([byte ^ 1 << place % 8])
        path.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        with pytest.raises(UserError):
            load(tmp_path, "last", KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["flipped", "truncated", "longer", "empty", "missing", "folder"])
def test_a_damaged_tensor_file(tmp_path, kind, how):
    save_step(tmp_path, 1)
    path = next(tmp_path.glob(f"*.{kind}.safetensors"))
    content = bytearray(path.read_bytes())
    if how in ("missing", "folder"):
        path.unlink()
        if how == "folder":
            path.mkdir()
    else:
        content[-1] ^= 4  # of a tensor: that a header is none is noticed without a sha256
        path.write_bytes(
            {
                "flipped": bytes(content),
                "truncated": path.read_bytes()[:-1],
                "longer": path.read_bytes() + b"\0",
                "empty": b"",
            }[how]
        )
    why = {"missing": "is missing", "folder": "is no file"}.get(how, "is damaged: its sha256")
    with pytest.raises(UserError, match=f"{kind}.safetensors {why}"):
        load(tmp_path, "last", KINDS)
    others = [other for other in KINDS if other != kind]
    assert load(tmp_path, "last", others)[0]["step"] == 1


@pytest.mark.parametrize(
    "name",
    [
        *("../x.safetensors", "../0000001.0123456789abcdef.weights.safetensors", "/etc/passwd"),
        *("", ".", "a\0b", "x" * 300, 7, None, "mine.safetensors"),
    ],
)
def test_a_record_names_files_of_its_own_folder_only(tmp_path, name):
    (tmp_path / "run").mkdir()
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "run" / "mine.safetensors")
    save_step(tmp_path / "run", 1)

    def change(record):
        record["files"]["weights"]["name"] = name

    rewrite(tmp_path / "run" / "last.json", change)
    with pytest.raises(UserError, match="which is no tensor file of its own folder"):
        load(tmp_path / "run", "last")


@pytest.mark.parametrize(
    "files", [None, [], {}, {"weights": None}, {"weights": {"name": "x"}}, {"weights": []}]
)
def test_a_record_without_the_files(tmp_path, files):
    save_step(tmp_path, 1)
    rewrite(tmp_path / "last.json", lambda record: record.update(files=files))
    with pytest.raises(UserError, match="names no weights"):
        load(tmp_path, "last")


@pytest.mark.parametrize(
    "content",
    [
        b"no safetensors",
        b"\xff" * 8 + b"{}",
        (2).to_bytes(8, "little") + b"{}" + b"more",
        (66).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[4294967295],"data_offsets":[0,4]}}   '
        + b"\0" * 4,
        (66).to_bytes(8, "little")
        + b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}            '
        + b"\0" * 4,
    ],
)
def test_a_foreign_tensor_file_with_the_right_sha256(tmp_path, content):
    save_step(tmp_path, 1)
    path = next(tmp_path.glob("*.weights.safetensors"))
    path.write_bytes(content)
    digest = checkpoint._sha256_of_file(path)
    rewrite(tmp_path / "last.json", lambda record: record["files"]["weights"].update(sha256=digest))
    with pytest.raises(UserError, match="is no safetensors file"):
        load(tmp_path, "last")
