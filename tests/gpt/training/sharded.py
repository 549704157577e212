"""Ranks that share a model in bf16, for `tests/gpt/training/test_distributed.py`; each runs this file."""

import json
from dataclasses import replace
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from gpt.config.model import ModelConfig
from gpt.config.presets import PRESETS
from gpt.data.batches import Data
from gpt.data.tokenizers import ByteTokenizer
from gpt.models.packed import GPT
from gpt.training import distributed
from gpt.training.optimizers import make_optimizers
from gpt.training.step import DeviceStep, Precision

CPU = torch.device("cpu")
MODEL = ModelConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=32, bias=True)
STEPS, BAD = 6, 3  # the step in which one rank's loss is infinite


class Step(DeviceStep):
    def loss(self, x, y):
        loss = super().loss(x, y)
        return (
            loss * torch.where(self.number == BAD, torch.inf, 1.0)
            if distributed.is_main()
            else loss
        )


class NeverWaits(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host reads a value"
        return func(*args, **(kwargs or {}))


def make(batch_size: int, dtype: torch.dtype) -> Step:
    config = replace(
        PRESETS["shakespeare-char"],
        **{"model": MODEL, "batch_size": batch_size, "nan": "skip", "warmup_iters": 0},
    )
    tokens = torch.randint(64, (2000,), generator=torch.Generator().manual_seed(0))
    data = Data("random", tokens.int(), tokens.int(), ByteTokenizer(), CPU)
    torch.manual_seed(1)
    model = GPT(config.model, kernels.load("torch"))
    distributed.shard(model, CPU, dtype)
    optimizers = make_optimizers(model, config, partial(torch.optim.AdamW, fused=True))
    return Step(model, optimizers, data, config, Precision(CPU, dtype))


def losses() -> list[float]:
    """The mean losses of some steps of all ranks, one of which leaves its update out."""
    step = make(8 // distributed.world(), torch.bfloat16)
    attention, dtypes = step.model.blocks[0].sa, []
    attention.register_forward_hook(lambda *_: dtypes.append(attention.proj.weight.dtype))
    weights, left_out, found = distributed.whole(step.weights[0]).clone(), [], []
    for number in range(STEPS):
        step.number.fill_(number)
        with NeverWaits():
            loss = step.take(number)
        found.append(distributed.mean(loss).item())
        before, weights = weights, distributed.whole(step.weights[0]).clone()
        left_out += [number] if torch.equal(before, weights) else []
    assert left_out == [BAD]
    assert {weight.dtype for weight in step.weights} == {torch.float32}
    assert set(dtypes) == {torch.bfloat16 if distributed.world() > 1 else torch.float32}
    return found


if __name__ == "__main__":
    distributed.join("cpu")
    text = json.dumps(losses())
    if distributed.is_main():
        print(text)
    distributed.leave()
