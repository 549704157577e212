"""Small runs of train.py for the tests: its `main` in this process, and what it left behind."""

import json
import random
import string
from pathlib import Path

import train

SIZES = ["--n-layer=2", "--n-head=2", "--n-embd=16", "--block-size=8", "--batch-size=4"]
CPU = ["--device=cpu", "--dtype=float32"]
SHORT = ["--max-iters=4", "--eval-interval=2", "--log-interval=1", "--sample=0"]
CLOCK = ("seconds", "milliseconds")  # in the metrics, and never twice the same


def write_text(folder, length=400):
    """A text of letters in no order but the same one on every machine."""
    path = Path(folder) / "text"
    letters = random.Random(1).choices(string.ascii_lowercase[:10] + " \n", k=length)
    path.write_text("".join(letters))
    return path


def run(folder, *options, preset="shakespeare-char"):
    """train.py over a small text with small sizes, on the CPU; later options win."""
    if "--resume" not in options:
        data = write_text(Path(folder).parent)
        options = [f"--preset={preset}", f"--data={data}", *SIZES, *CPU, *SHORT, *options]
    return train.main([*options, f"--out-dir={folder}"])


def metrics(folder):
    """The lines of a run without the clock's."""
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in CLOCK}
        for line in lines
    ]


def record(folder, name="last"):
    return json.loads((Path(folder) / f"{name}.json").read_text())


def tensor_files(folder, name="last"):
    """Kind -> sha256 of what a checkpoint holds: equal for equal bits."""
    return {kind: file["sha256"] for kind, file in record(folder, name)["files"].items()}
