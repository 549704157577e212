"""Several ranks train as one with a larger batch: here two CPU processes with gloo."""

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
from tests.runs import metrics

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = """--preset=shakespeare-char --data=python-docs --device=cpu --kernels=torch
    --dtype=float32 --n-layer=2 --n-embd=16 --n-head=2 --block-size=64 --dropout=0 --bias
    --embedding-dropout=0 --batch-size=4 --gradient-accumulation-steps=4 --warmup-iters=2
    --lr-decay-iters=8 --eval-interval=3 --log-interval=1"""
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(world_size, *command):
    """Run `command` on each rank, with the variables that torchrun sets; return rank 0's stdout."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = []
    for rank in range(world_size):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
        ranks = {name: str(value) for name, value in ranks.items()} | {"MASTER_ADDR": "127.0.0.1"}
        options = {"cwd": ROOT, "env": ONE_THREAD | ranks, "stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, *command], **options))
    first, *_ = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world_size
    return first


def train(folder, world_size, *options):
    """train.py with OPTIONS on `world_size` ranks."""
    start(world_size, "train.py", *OPTIONS.split(), *options, f"--out-dir={folder}")


def losses(folder, name):
    """Step -> loss."""
    return {line["step"]: line[name] for line in metrics(folder) if name in line}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run of one rank, which takes all four passes of a step."""
    folder = tmp_path_factory.mktemp("one") / "run"
    train(folder, 1, "--max-iters=8")
    assert len(losses(folder, "loss")) == 8
    return folder


def assert_equal_losses(folder, one):
    assert losses(folder, "loss") == pytest.approx(losses(one, "loss"), rel=1e-5)
    evaluated, expected = losses(folder, "val_loss"), losses(one, "val_loss")
    assert {step: evaluated[step] for step in expected} == pytest.approx(expected, rel=1e-5)


def test_two_ranks_have_the_losses_of_one_with_the_same_options(tmp_path, one):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = ["--max-iters=8", f"--out-dir={tmp_path / 'two'}"]
    run = [*torchrun, ROOT / "train.py", *OPTIONS.split(), *options]
    done = subprocess.run(run, check=True, env=ONE_THREAD, capture_output=True, text=True)
    assert "FutureWarning" not in done.stderr
    assert_equal_losses(tmp_path / "two", one)


def test_fsdp_has_the_losses_of_one_rank_and_resumes_on_any_number_of_ranks(tmp_path, one):
    fsdp = "--parallel=fsdp"
    train(tmp_path / "run", 2, fsdp, "--max-iters=3")
    train(tmp_path / "run", 1, "--resume", "--parallel=ddp", "--max-iters=5")
    train(tmp_path / "run", 2, "--resume", fsdp, "--activation-checkpointing", "--max-iters=8")
    assert_equal_losses(tmp_path / "run", one)


@pytest.fixture(scope="module")
def two():
    """What two ranks of `sharded.py` print."""
    return json.loads(start(2, "-m", "tests.gpt.training.sharded"))


def test_fsdp_in_bf16_has_the_losses_of_one_rank_and_never_waits(two):
    """Weights are gathered in bf16; a step that is not finite is skipped on all ranks."""
    # gathering rounds the weights of norms and embeddings to bf16 too
    assert two[0] == pytest.approx(sharded.losses(), rel=2e-4)


def test_every_target_counts_alike_however_passes_and_ranks_share_the_rows(two):
    """In fp64, but for FSDP, which adds up the ranks' gradients in fp32."""
    assert max(two[1]) < 1e-13
    assert max(two[2]) < 1e-6


def test_data_parallel_gradients_are_views_of_the_memory_that_is_exchanged(tmp_path):
    """Their addresses are constant, and none is copied."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    try:
        model = distributed.data_parallel(torch.nn.Linear(3, 5))
        model(torch.ones(2, 3)).sum().backward()
        addresses = {one.grad.untyped_storage().data_ptr() for one in model.parameters()}
        assert len(addresses) == 1
    finally:
        distributed.destroy_process_group()
