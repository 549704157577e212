"""Small runs of train.py in this process, and helpers to read and modify the files of a run."""

import contextlib
import hashlib
import json
import os
import random
import resource
import string
import sys
from pathlib import Path

import train
from gpt.config.train import TrainConfig
from gpt.files import Folder
from gpt.runs import checkpoint

SIZES = ["--n-layer=2", "--n-head=2", "--n-embd=16", "--block-size=8", "--batch-size=4"]
CPU = ["--device=cpu", "--dtype=float32"]
SHORT = ["--max-iters=4", "--eval-interval=2", "--log-interval=1", "--sample=0"]
TIMES = ("seconds", "milliseconds")  # metrics that differ between equal runs


def write_text(folder, length=400):
    """Write a text of random characters, the same on every machine."""
    path = Path(folder) / "text"
    letters = random.Random(1).choices(string.ascii_lowercase[:10] + " \n", k=length)
    path.write_text("".join(letters))
    return path


def run(folder, *options, preset="shakespeare-char"):
    """Run train.py on a small text with small sizes on the CPU. Later options take precedence."""
    if "--resume" not in options:
        data = write_text(Path(folder).parent)
        options = [f"--preset={preset}", f"--data={data}", *SIZES, *CPU, *SHORT, *options]
    return train.main([*options, f"--out-dir={folder}"])


def in_child(program, *streams):
    """The exit code of `program()` in a fork of this process with its streams protected.

    streams: the descriptors that replace stdin, stdout and stderr; None closes one.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 99  # an exception, which pytest must not see in the child
    try:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        for number, stream in enumerate(streams):
            if stream is None:
                os.close(number)
            else:
                os.dup2(stream, number)
        sys.exit(program())
    except SystemExit as end:
        code = end.code
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


@contextlib.contextmanager
def full_disk(size):
    """Let no file become larger than `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_weights(folder, config, tokenizer, weights):
    """Write a run as far as it is needed to load its model."""
    record = {"step": 0, "train": TrainConfig(model=config).to_dict()}
    record["tokenizer"] = tokenizer.to_json()
    with Folder(folder) as held:
        checkpoint.save(held, {"best": ("weights",)}, {"weights": weights}, record)


def metrics(folder):
    """The lines of metrics.jsonl without the times."""
    lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
    return [{name: line[name] for name in line if name not in TIMES} for line in lines]


def losses(folder):
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def record(folder, name="last"):
    return json.loads((Path(folder) / f"{name}.json").read_text())


def tensor_files(folder, name="last"):
    """The sha256 of each tensor file of a checkpoint, by kind: equal if the tensors are equal."""
    return {kind: file["sha256"] for kind, file in record(folder, name)["files"].items()}


def sign(path, content):
    """Write `content` to a checkpoint's JSON file with a valid sha256."""
    content.pop("sha256", None)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "sha256": digest}))


def sign_tensors(tensor_path):
    """Update the sha256 of a modified tensor file in every checkpoint that refers to it."""
    digest = hashlib.sha256(tensor_path.read_bytes()).hexdigest()
    for path in tensor_path.parent.glob("*.json"):
        content = json.loads(path.read_text())
        for file in content.get("files", {}).values():
            if file["name"] == tensor_path.name:
                file["sha256"] = digest
                sign(path, content)
