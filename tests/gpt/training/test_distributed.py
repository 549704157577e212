"""Several ranks train as one with a larger batch: here two CPU processes with gloo."""

import json

import pytest
import torch
import torch.distributed as dist

from gpt.training import distributed
from tests.gpt.training import ranks
from tests.runs import metrics, write_text
from train import main

OPTIONS = """--preset=shakespeare-char --device=cpu --kernels=torch
    --dtype=float32 --n-layer=2 --n-embd=16 --n-head=2 --block-size=64 --dropout=0 --bias
    --embedding-dropout=0 --batch-size=4 --gradient-accumulation-steps=4 --warmup-iters=2
    --lr-decay-iters=8 --eval-interval=2 --log-interval=1"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of one and of two ranks, and what two ranks of `ranks.py` print."""
    folder = tmp_path_factory.mktemp("ranks")
    data = f"--data={write_text(folder, 5_000)}"

    def options(name, steps, *more):
        return [*OPTIONS.split(), data, *more, f"--max-iters={steps}", f"--out-dir={folder / name}"]

    assert main(options("one", 8)) == main(options("mixed", 2)) == 0
    printed = ranks.on_two_ranks([], options("two", 8), options("mixed", 6, "--resume"))
    assert main(options("mixed", 8, "--resume")) == 0
    return folder, json.loads(printed.partition("\n")[0])


@pytest.mark.parametrize("name", ["two", "mixed"])
def test_two_ranks_have_the_losses_of_one_with_the_same_options(trained, name):
    """And so have one rank, two and one again, which resume each other."""

    def losses(of, kind):
        lines = metrics(trained[0] / of)
        return {line["step"]: line[kind] for line in lines if kind in line}

    assert [*losses(name, "loss")] == [*range(1, 9)]
    for kind in ("loss", "train_loss", "val_loss"):
        assert losses(name, kind) == pytest.approx(losses("one", kind), rel=1e-5)


def test_a_device_step_has_the_losses_of_one_rank_and_never_waits(trained):
    """In bf16; a step that is not finite on one rank is skipped on all."""
    # each rank rounds its gradients to bf16
    assert trained[1][0] == pytest.approx(ranks.losses(), rel=2e-4)


def test_every_target_counts_alike_however_passes_and_ranks_share_the_rows(trained):
    assert max(trained[1][1]) < 1e-13


WRONG = [("WORLD_SIZE", value) for value in ("", "x", "0", "-1", "1" * 5000)]
WRONG += [("RANK", "2"), ("LOCAL_RANK", ""), ("MASTER_PORT", "65536"), ("MASTER_ADDR", "")]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_incomplete_variables_of_torchrun_are_one_sentence(monkeypatch, capsys, name, value):
    right = {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "::1", "MASTER_PORT": 9}
    for variable, each in (right | {name: value}).items():
        monkeypatch.setenv(variable, str(each))
    assert main(["--device=cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"environment variable {name} " in line


def test_data_parallel_gradients_are_views_of_the_memory_that_is_exchanged(tmp_path):
    """Their addresses are constant, and none is copied."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    try:
        model = distributed.data_parallel(torch.nn.Linear(3, 5))
        model(torch.ones(2, 3)).sum().backward()
        addresses = {one.grad.untyped_storage().data_ptr() for one in model.parameters()}
        del model  # after its group, it could wait for the group's threads for ever
        assert len(addresses) == 1
    finally:
        distributed.destroy_process_group()
