"""Several ranks under torchrun, here two CPU processes that talk by gloo, are one larger one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OPTIONS = [
    "--preset=shakespeare-char",
    "--data=python-docs",
    "--device=cpu",
    "--kernels=torch",
    "--dtype=float32",
    "--n-layer=1",
    "--n-embd=16",
    "--n-head=2",
    "--block-size=64",
    "--dropout=0",
    "--embedding-dropout=0",
    "--gradient-accumulation-steps=2",
    "--warmup-iters=2",
    "--max-iters=6",
    "--eval-interval=3",
    "--log-interval=1",
]


def metrics(command, *options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = [*command, ROOT / "train.py", *OPTIONS, *options]
    subprocess.run(run, check=True, env=environment, stdout=subprocess.DEVNULL)
    folder = options[-1].removeprefix("--out-dir=")
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def test_two_ranks_see_and_learn_what_one_does_with_twice_the_batch(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    one = metrics([sys.executable], "--batch-size=8", f"--out-dir={tmp_path / 'one'}")
    two = metrics(torchrun, "--batch-size=4", f"--out-dir={tmp_path / 'two'}")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for mine, ours in zip(one, two, strict=True):
        name = "loss" if "loss" in mine else "val_loss"
        assert ours[name] == pytest.approx(mine[name], rel=1e-6)
    # what two ranks have saved goes on with one
    options = ["--batch-size=8", "--resume", "--max-iters=9", f"--out-dir={tmp_path / 'two'}"]
    assert metrics([sys.executable], *options)[-1]["step"] == 9
