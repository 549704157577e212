"""One rank of those that train a model together: `on_two_ranks` starts this file on each."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from gpt.config.model import IGNORE_INDEX, ModelConfig
from gpt.config.presets import PRESETS
from gpt.data.batches import TokenDataset
from gpt.data.tokenizers import ByteTokenizer
from gpt.models.packed import GPT
from gpt.training import distributed
from gpt.training.gradients import BatchPlan, Gradients
from gpt.training.precision import Precision
from gpt.training.step import DeviceStep
from tests.gpt.configs import draw_tokens
from tests.gpt.training.steps import all_equal, fused_adamw, small_step, weights_of
from train import main

ROOT = Path(__file__).resolve().parents[3]
MODEL = ModelConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=32, bias=True)
STEPS, BAD = 6, 3  # the step in which one rank's loss is infinite


class UnequalRows(TokenDataset):
    """Rows of 1 to block_size targets, as many as the first token says."""

    def batch(self, *of, **options):
        x, y = super().batch(*of, **options)
        counts = torch.arange(x.shape[1]) <= x[:, :1] % x.shape[1]
        return x, torch.where(counts, y, IGNORE_INDEX)


class NeverWaits(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host reads a value"
        return func(*args, **(kwargs or {}))


def losses() -> list[float]:
    """The losses of some steps in bf16, averaged over the ranks; step BAD changes no weight."""
    options = {"model": MODEL, "batch_size": 8 // distributed.world_size(), "nan": "skip"}
    config = replace(PRESETS["shakespeare-char"], warmup_iters=0, **options)
    torch.manual_seed(1)
    model = distributed.data_parallel(GPT(MODEL, kernels.load("torch")))
    step = small_step(DeviceStep, model, config, fused_adamw, torch.bfloat16)
    if distributed.is_main():
        loss = step.gradients.loss
        step.gradients.loss = lambda x, y: loss(x, y) / (step.number != BAD)  # infinite
    left_out, found = [], []
    for number in range(STEPS):
        step.number.fill_(number)
        before = weights_of(step)
        with NeverWaits():
            loss_of_rank = step.take(number)
        found.append(distributed.all_reduce_mean(loss_of_rank).item())
        left_out += [number] if all_equal(before, weights_of(step)) else []
    assert left_out == [BAD]
    return found


def error_of_step(batch_size: int, passes: int) -> float:
    """Of the loss and all gradients of 8 rows, against one pass in fp64 that adds up the losses.

    The rows have different numbers of targets, and so have passes and ranks.
    """
    tokens, block_size = draw_tokens(1, 500, 1, MODEL.vocab_size)[0], MODEL.block_size
    data = UnequalRows("text", tokens, tokens, ByteTokenizer())
    torch.manual_seed(1)
    model = GPT(MODEL, kernels.load("torch")).double()
    x, y = data.batch(3, 8, 8, block_size)
    losses = F.cross_entropy(model(x)[0].mT, y, ignore_index=IGNORE_INDEX, reduction="none")
    mean = losses.sum() / (y != IGNORE_INDEX).sum()
    expected = [mean.detach(), *torch.autograd.grad(mean, list(model.parameters()))]

    plan = BatchPlan(batch_size, block_size, passes, seed=3)
    precision = Precision(torch.device("cpu"), torch.float32)  # without autocast
    step = Gradients(distributed.data_parallel(model), (), data, plan, precision)
    found = [distributed.all_reduce_mean(step(1)[0])]
    found += [weight.grad for weight in step.parameters]
    pairs = zip(found, expected, strict=True)
    return max(((one - other).norm() / other.norm()).item() for one, other in pairs)


def measure() -> None:
    """Print the losses and the errors of a step."""
    distributed.init_process_group("cpu")
    errors = [error_of_step(*split) for split in ((4, 1), (2, 2), (1, 4))]
    text = json.dumps([losses(), errors])
    if distributed.is_main():
        print(text)
    distributed.destroy_process_group()


def on_two_ranks(*runs: list[str]) -> str:
    """Take the runs of train.py one after the other, `measure` for []; returns rank 0's stdout."""
    with contextlib.ExitStack() as stack:  # a port for each, since the last may still be in use
        free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in runs]
        ports = [server.getsockname()[1] for server in free]
    command = [sys.executable, "-m", __name__, json.dumps([*zip(ports, runs, strict=True)])]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    variables = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=each, **options) for each in variables]
    printed, _ = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return printed


if __name__ == "__main__":
    for port, options in json.loads(sys.argv[1]):
        os.environ["MASTER_PORT"] = str(port)
        assert not (main(options) if options else measure())
