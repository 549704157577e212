"""Checkpoints: saving and loading, and the damage that is rejected."""

import json
import os

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from gpt import UserError, files
from gpt.runs.checkpoint import load, save, serialised
from tests.gpt.runs.saving import KINDS, save_step, step_of
from tests.runs import record, sign, sign_tensors


def names_in(folder):
    return sorted(path.name.split(".")[-2] for path in folder.iterdir())


def test_load_returns_the_record_and_the_tensors(tmp_path):
    more = {"loss": 0.1 + 0.2, "nested": {"é": [1, None, True]}, "infinite": float("inf")}
    save_step(tmp_path, 3, **more)
    assert step_of(tmp_path, "last") == 3
    assert step_of(tmp_path, "best", ("weights",)) == 3
    found, _ = load(tmp_path, "last")
    assert {name: found[name] for name in more} == more
    assert found["version"] == 1
    assert "optimizer" not in load(tmp_path, "best")[0]["files"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}  # no pickle


def test_checkpoints_share_files_and_unused_files_are_removed(tmp_path):
    save_step(tmp_path, 1)
    assert names_in(tmp_path) == ["best", "last", "optimizer", "random", "weights"]
    save_step(tmp_path, 2, {"last": KINDS})
    assert step_of(tmp_path, "best", ("weights",)) == 1
    assert step_of(tmp_path, "last") == 2
    save_step(tmp_path, 3)
    assert names_in(tmp_path) == ["best", "last", "optimizer", "random", "weights"]


def test_a_step_can_be_saved_again_with_other_tensors(tmp_path):
    save_step(tmp_path, 1)
    others = {"weights": {"strided": torch.rand(2, 3).mT, "empty": torch.empty(0, 4)}}
    with files.Folder(tmp_path) as folder:
        save(folder, {"last": ("weights",)}, others, {"step": 1})
    assert step_of(tmp_path, "best", ("weights",)) == 1
    torch.testing.assert_close(load(tmp_path, "last")[1], others)


def test_every_tensor_is_aligned_in_its_file(tmp_path):
    tensors = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(5), "c": torch.tensor(7)}
    content = b"".join(serialised(tensors))
    start = 8 + int.from_bytes(content[:8], "little")
    assert start % 8 == 0
    for name, place in json.loads(content[8:start]).items():
        assert place["data_offsets"][0] % tensors[name].element_size() == 0
    torch.testing.assert_close(safetensors.torch.load(content), tensors)


def test_other_files_and_those_of_damaged_checkpoints_are_kept(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "mine.safetensors")
    (tmp_path / "notes.json").write_text("not JSON")
    save_step(tmp_path, 1)
    save_step(tmp_path, 2)
    assert len(list(tmp_path.glob("*.weights.safetensors"))) == 2  # notes.json may refer to one
    (tmp_path / "notes.json").unlink()
    save_step(tmp_path, 3)
    assert len(list(tmp_path.glob("*.weights.safetensors"))) == 1
    assert (tmp_path / "mine.safetensors").exists()


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    save_step(tmp_path, 0)
    opened = files.Folder.open

    def replaced(folder, name):
        monkeypatch.undo()
        save_step(tmp_path, 1)
        return opened(folder, name)

    monkeypatch.setattr(files.Folder, "open", replaced)
    assert step_of(tmp_path, "last") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *((b"\xff", "is not JSON"), (b"{", "is not JSON"), (b"[" * 200_000, "is not JSON")),
        *((b"[]", "is not a JSON object"), (b"{}", "has version None")),
        (b'{"version": 2}', "has version 2, but this program reads version 1"),
        (b'{"version": 1}', "is damaged: its sha256"),
        (b'{"version": 1, "sha256": {}}', "is damaged: its sha256"),
    ],
)
def test_a_json_file_that_is_not_a_checkpoint_is_rejected(tmp_path, content, message):
    (tmp_path / "last.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path, "last")


def test_a_path_that_is_missing_or_not_a_file_is_rejected(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist; name the folder of a run"):
        load(tmp_path / "nowhere", "last")
    with pytest.raises(UserError, match=r"last\.json does not exist; is there a run in"):
        load(tmp_path, "last")
    os.mkfifo(tmp_path / "last.json")  # reading it would block
    (tmp_path / "best.json").mkdir()
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(files.LARGEST_JSON + 1)  # a sparse file
    (tmp_path / "link.json").symlink_to(tmp_path / "large.json")
    causes = dict.fromkeys(("last", "best", "large"), "it is not a regular file of at most 64 MiB")
    for name, cause in {**causes, "link": "it is a link, which is not followed"}.items():
        with pytest.raises(UserError, match=cause):
            load(tmp_path, name)


SHORT = b'{"a":{"dtype":"F32","shape":[4294967295],"data_offsets":[0,4]}}'
SHORT = len(SHORT).to_bytes(8, "little") + SHORT + b"\0" * 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xaa"), "is damaged: its sha256"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read: it is not a regular file"),
        (
            lambda path: path.symlink_to(path.rename(path.with_name("x"))),
            "cannot be read: it is a link",
        ),
        (lambda path: (path.write_bytes(b"not"), sign_tensors(path)), "is not a safetensors file"),
        (lambda path: (path.write_bytes(SHORT), sign_tensors(path)), "is not a safetensors file"),
    ],
)
def test_a_damaged_tensor_file_is_rejected(tmp_path, kind, damage, message):
    save_step(tmp_path, 1)
    damage(next(tmp_path.glob(f"*.{kind}.safetensors")))
    with pytest.raises(UserError, match=f"{kind}.safetensors {message}"):
        load(tmp_path, "last", KINDS)


NOT_OURS = "which is not a tensor file in the same folder"
NAMES = ["../x.safetensors", "../0000001.0123456789abcdef.weights.safetensors", "/etc/passwd"]
NAMES += ["", ".", "a\0b", "x" * 300, 7, None, "mine.safetensors"]
RECORDS = [({"weights": {"name": name, "sha256": ""}}, NOT_OURS) for name in NAMES]
RECORDS += [(some, "not contain weights") for some in (None, [], {}, {"weights": {"name": "x"}})]


@pytest.mark.parametrize(("files", "message"), RECORDS)
def test_a_record_must_name_tensor_files_of_its_own_folder(tmp_path, files, message):
    (tmp_path / "run").mkdir()
    for path in ("x.safetensors", "run/mine.safetensors"):
        save_file({"x": torch.ones(1)}, tmp_path / path)
    save_step(tmp_path / "run", 1)
    sign(tmp_path / "run" / "last.json", record(tmp_path / "run") | {"files": files})
    with pytest.raises(UserError, match=message):
        load(tmp_path / "run", "last")
