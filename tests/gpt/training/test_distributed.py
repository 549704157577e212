"""Several ranks, here two CPU processes that talk by gloo, are one with a larger batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from gpt.training import distributed
from tests.gpt.training import sharded

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = [
    "--preset=shakespeare-char",
    "--data=python-docs",
    "--device=cpu",
    "--kernels=torch",
    "--dtype=float32",
    "--n-layer=2",
    "--n-embd=16",
    "--n-head=2",
    "--block-size=64",
    "--dropout=0",
    "--bias",
    "--embedding-dropout=0",
    "--gradient-accumulation-steps=2",
    "--warmup-iters=2",
    "--lr-decay-iters=8",
    "--eval-interval=3",
    "--log-interval=1",
]


SLOWLY = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(world, *command):
    """`command` on `world` ranks that are told what torchrun tells them; what the first prints."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = []
    for rank in range(world):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        told = {name: str(value) for name, value in told.items()} | {"MASTER_ADDR": "127.0.0.1"}
        run = [sys.executable, *command]
        options = {"cwd": ROOT, "env": SLOWLY | told, "stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(run, **options))
    first, *_ = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world
    return first


def go_on(folder, world, *options):
    """train.py with OPTIONS on `world` ranks."""
    start(world, "train.py", *OPTIONS, *options, f"--out-dir={folder}")


def losses(folder, name):
    """Step -> loss."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One rank with the batch of two."""
    folder = tmp_path_factory.mktemp("one") / "run"
    go_on(folder, 1, "--batch-size=8", "--max-iters=8")
    assert len(losses(folder, "loss")) == 8
    return folder


def assert_alike(folder, one):
    assert losses(folder, "loss") == pytest.approx(losses(one, "loss"), rel=1e-5)
    evaluated = losses(folder, "val_loss")
    for step in (0, 3, 6, 8):
        assert evaluated[step] == pytest.approx(losses(one, "val_loss")[step], rel=1e-5)


def test_two_ranks_see_and_learn_what_one_does_with_twice_the_batch(tmp_path, one):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = ["--batch-size=4", "--max-iters=8", f"--out-dir={tmp_path / 'two'}"]
    run = [*torchrun, ROOT / "train.py", *OPTIONS, *options]
    done = subprocess.run(run, check=True, env=SLOWLY, capture_output=True, text=True)
    assert "FutureWarning" not in done.stderr
    assert_alike(tmp_path / "two", one)


def test_ranks_that_share_the_model_learn_alike_and_go_on_as_one_and_as_two(tmp_path, one):
    two = ["--batch-size=4", "--parallel=fsdp"]
    go_on(tmp_path / "run", 2, *two, "--max-iters=3")
    go_on(tmp_path / "run", 1, "--resume", "--batch-size=8", "--parallel=ddp", "--max-iters=5")
    go_on(tmp_path / "run", 2, "--resume", *two, "--activation-checkpointing", "--max-iters=8")
    assert_alike(tmp_path / "run", one)


def test_ranks_that_share_the_model_in_bf16_learn_alike_and_never_wait():
    """Weights are gathered in bf16, and the device leaves a bad step out on all ranks."""
    two = json.loads(
        start(2, "-m", "tests.gpt.training.sharded")
    )  # rounds norms and embeddings to bf16 too
    assert two == pytest.approx(sharded.losses(), rel=2e-4)


def test_gradients_of_ranks_lie_in_one_place(tmp_path):
    """Views of the memory that is exchanged: their addresses stay, and none is copied."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    try:
        model = distributed.parallel(torch.nn.Linear(3, 5))
        model(torch.ones(2, 3)).sum().backward()
        places = {one.grad.untyped_storage().data_ptr() for one in model.parameters()}
        assert len(places) == 1
    finally:
        distributed.leave()
