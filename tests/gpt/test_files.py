"""Every writer of files, failing or killed at each of its system calls, and after a power cut."""

import fcntl
import json
import os
import shutil
import stat
from dataclasses import replace

import pytest
from safetensors.torch import load_file

import kernels
from gpt import UserError
from gpt.data import prepare
from gpt.data.corpus import open_data
from gpt.data.tokenizers import CharTokenizer
from gpt.files import Folder, new_folder, write_whole
from gpt.models.packed import GPT
from gpt.pretrained import export
from gpt.runs.checkpoint import save
from gpt.runs.metrics import MetricsLog, read_metrics
from gpt.runs.portable_state import portable_state
from gpt.runs.run_folder import run_folder
from tests.faults import FAULTS, Killed, Log, fault
from tests.gpt.configs import CONFIGS
from tests.gpt.runs.saving import KINDS, step_of, tensors_of
from tests.runs import save_weights

# --- the writers: each writes the files of a version 0 or 1, and finds which one is there ---------


class Checkpoint:
    def write(self, folder, version):
        with run_folder(folder, resume=True) as held:
            save(
                held, {"best": ("weights",), "last": KINDS}, tensors_of(version), {"step": version}
            )

    def read(self, folder):
        best, last = step_of(folder, "best", ("weights",)), step_of(folder, "last", KINDS)
        assert (best, last) in ((0, 0), (1, 0), (1, 1))
        return last


class Metrics:
    def write(self, folder, version):
        with (
            run_folder(folder, resume=True) as held,
            MetricsLog(held, {"version": version}, resume_at=1) as log,
        ):
            log.log(step=1 + version, loss=1.0)
            log.sync()
            log.finish({"version": version})

    def read(self, folder):
        steps = [line["step"] for line in read_metrics(folder)]
        assert steps in ([1], [1, 2])
        config, summary = (json.loads((folder / name).read_text())["version"] for name in FILES)
        assert (config, summary) in ((0, 0), (1, 0), (1, 1))
        assert (folder / "loss.png").read_bytes().endswith((PNG, b"IEND\xaeB`\x82"))
        return summary


PNG = b"...IEND"
FILES = ("config.json", "summary.json")


class Earlier:
    """The folder of an earlier run makes room for a new one."""

    def write(self, folder, version):
        with run_folder(folder / "out", resume=False) as held:
            if not version:
                held.write_json("config.json", {})

    def read(self, folder):
        moved = (folder / "out.1" / "config.json").exists()
        assert moved or (folder / "out" / "config.json").exists()
        return int(moved)


class Prepare:
    def write(self, folder, version):
        (folder / "source.txt").write_text("some text<|endoftext|>and more" * 9)
        options = {"tokenizer": "byte", "out_dir": str(folder / "tokens"), "val_fraction": 0.1}
        if version:
            prepare.prepare(prepare.PrepareConfig((str(folder / "source.txt"),), **options))

    def read(self, folder):
        if not (folder / "tokens").exists():
            return 0
        data = open_data(str(folder / "tokens"), "", "char")
        assert len(data.train) + len(data.val) == 9 * len("some text\n\nand more") + 2
        return 1


class Export:
    def write(self, folder, version):
        if version:
            export.export(self.run, folder / "out")

    def read(self, folder):
        if not (folder / "out").exists():
            return 0
        assert "transformer.wte.weight" in load_file(folder / "out" / "model.safetensors")
        assert json.loads((folder / "out" / "config.json").read_text())
        return 1


class Whole:
    """Reports and results are one file each."""

    def write(self, folder, version):
        write_whole(folder / "README.md", str(version).encode())

    def read(self, folder):
        return int((folder / "README.md").read_bytes())


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("error", FAULTS, ids=str)
@pytest.mark.parametrize("kind", [Checkpoint, Metrics, Earlier, Prepare, Export, Whole])
def test_a_fault_at_any_call_leaves_the_old_or_the_new_files(tmp_path, monkeypatch, kind, error):
    writer, old, new, place = kind(), *(tmp_path / name for name in ("old", "new", "place"))
    writer.run = exported(tmp_path) if kind is Export else None
    monkeypatch.setattr("gpt.runs.metrics.plot_losses", lambda metrics: PNG)  # takes long
    old.mkdir()
    writer.write(old, 0)
    shutil.copytree(old, new)
    with fault(0, None) as calls:
        writer.write(new, 1)
    assert writer.read(new) == 1
    for when in range(1, len(calls) + 1):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(old, place)
        raised = None
        try:
            with fault(when, error):
                writer.write(place, 1)
        except (UserError, OSError, Killed) as refusal:
            raised = refusal
        if not isinstance(error, Killed):
            assert not any(name.endswith(".partial") for name in names_in(place))
            if isinstance(raised, UserError):
                assert error.strerror in str(raised)
            else:
                assert raised is None or kind is Whole
        assert writer.read(place) == 1 or raised
        if writer.read(place) == 0 or kind not in (Prepare, Export):
            writer.write(place, 1)  # as if nothing had happened
        with Folder(place) as folder:
            folder.remove_partial()  # which a program without a lock leaves when it is killed
        assert writer.read(place) == 1
        assert len(names_in(place)) == len(names_in(new))


def exported(folder):
    """A small run that GPT-2's architecture can express."""
    (folder / "run").mkdir()
    model = GPT(replace(CONFIGS["gpt2"], n_layer=1), kernels.load("torch"))
    save_weights(folder / "run", model.config, CharTokenizer("abcdefghijk"), portable_state(model))
    return folder / "run"


@pytest.mark.parametrize("kind", [Checkpoint, Metrics, Whole])
def test_a_power_cut_leaves_the_old_or_the_new_files(tmp_path, kind):
    """Whatever part of the pending writes has reached the disk, in any order."""
    writer, place, disk = kind(), tmp_path / "place", tmp_path / "disk"
    place.mkdir()
    writer.write(place, 0)
    log, found = Log(place), set()
    with log.recording():
        writer.write(place, 1)
    for state in log.states:
        shutil.rmtree(disk, ignore_errors=True)
        disk.mkdir()
        for name, content in state:
            (disk / name).write_bytes(content)
        found.add(writer.read(disk))
    assert found == {0, 1}


def test_a_new_folder_appears_when_all_of_it_is_on_the_disk(tmp_path):
    with fault(0, None) as calls, new_folder(tmp_path / "out") as folder:
        folder.write("a", [b"1"])
        with folder.create("b") as file:
            file.write(b"2")
            file.sync()
    folder_and_rename = ["fsync", "rename", "open", "fsync"]
    assert calls[-6:] == ["write", "fsync", *folder_and_rename]
    assert names_in(tmp_path) == ["out", "out/a", "out/b"]


def test_a_new_folder_replaces_nothing_and_removes_what_a_killed_process_left(tmp_path):
    killed = tmp_path / ".out.0a.partial"
    for stale in (killed, tmp_path / ".out.0b.partial"):
        stale.mkdir()
        (stale / "file").write_text("")
    with Folder(killed) as running:  # not killed yet
        fcntl.flock(running.descriptor, fcntl.LOCK_EX)
        with new_folder(tmp_path / "out") as folder:
            folder.write_json("a", {})
    assert names_in(tmp_path) == [killed.name, f"{killed.name}/file", "out", "out/a"]
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "out/a").rename(tmp_path / "file")
    for name in ("link", "file", "."):
        with pytest.raises(UserError, match="already exists"), new_folder(tmp_path / name):
            pass
    with new_folder(tmp_path / "out"):  # it is empty
        pass


def test_files_honour_the_umask_and_links_are_replaced_or_rejected(tmp_path):
    (tmp_path / "kept").write_text("precious")
    for name in ("a", "b", "lock"):
        (tmp_path / name).symlink_to(tmp_path / "kept")
    before = os.umask(0o027)
    try:
        with Folder(tmp_path) as folder:
            folder.write("a", [b"1", memoryview(b""), b"23"])
            for function in (folder.open, folder.append):
                with pytest.raises((UserError, OSError), match=r"is a link|symbolic links"):
                    function("b")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").lstat().st_mode) == 0o640
    assert (tmp_path / "a").read_bytes() == b"123"
    with pytest.raises(UserError, match="not usable"), run_folder(tmp_path, resume=True):
        pass
    assert (tmp_path / "kept").read_text() == "precious"
