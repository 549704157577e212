"""Whole steps of the presets as the ledger's cases: what training, evaluating and decoding launch.

A step runs as it is, at its full size, on tensors that have no storage (PyTorch's FakeTensorMode),
while `kernels.common.launch` records instead of launching. Layers are all alike, so there are two.
"""

import contextlib
import warnings
from dataclasses import replace
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.training import a_text, configuration
from gpt.generation.int8 import quantize
from gpt.generation.kv_cache import CachedGPT
from gpt.models.build import build
from gpt.training.evaluation import EVALUATION_TOKENS
from gpt.training.optimizers import make_optimizers
from gpt.training.step import GraphStep, Precision

CPU = torch.device("cpu")  # whose autocast a machine without a GPU has
LOW = torch.bfloat16
LAYERS = 2


@contextlib.contextmanager
def without_storage():
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        # AdamW asks where its tensors lie, to tell a kernel that is not launched
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        yield


class TrainingStep(NamedTuple):
    """A step as a CUDA graph captures it, in bf16."""

    operation: str  # a name of PRESETS

    def __str__(self):
        return f"training step of {self.operation}"

    def run(self, ops, device) -> None:
        with without_storage():
            self.on(CPU, ops)

    def on(self, device, ops, **sizes) -> None:
        step = self.step(device, ops, **sizes)
        loss, bad = step.backward(step.number)
        step.guard(loss, bad)
        step.update()

    def step(self, device, ops, rows=0, **sizes) -> GraphStep:
        """With the preset's sizes, but for `rows` of a batch and those of the model in `sizes`."""
        config = configuration(self.operation, n_layer=LAYERS, **sizes)
        config = replace(config, batch_size=rows or config.batch_size)
        with device:
            model = build(config.model, ops)
        optimizers = make_optimizers(model, config, ops.adamw, LOW)
        text = a_text(config.model.vocab_size, device)
        return GraphStep(model, optimizers, text, config, Precision(device, LOW))


class Evaluation(NamedTuple):
    """The loss of a batch without gradients, in bf16."""

    operation: str  # a name of PRESETS

    def __str__(self):
        return f"evaluation of {self.operation}"

    def run(self, ops, device) -> None:
        with without_storage():
            self.on(CPU, ops)

    @torch.no_grad()
    def on(self, device, ops, rows=0, **sizes) -> None:
        config = configuration(self.operation, n_layer=LAYERS, **sizes).model
        with device:
            model = build(config, ops).eval()
        rows = rows or max(1, EVALUATION_TOKENS // config.block_size)
        x, y = torch.zeros((2, rows, config.block_size), dtype=torch.int64, device=device)
        with Precision(device, LOW).autocast():
            model(x, y)


class DecodingStep(NamedTuple):
    """A prompt, and a token of each row of a batch by the model with weights in bf16."""

    operation: str  # a name of PRESETS
    batch: int
    int8: bool = False

    def __str__(self):
        return f"decoding by {self.operation}, batch {self.batch}{', int8' if self.int8 else ''}"

    def run(self, ops, device) -> None:
        with without_storage():
            self.on(CPU, ops)

    @torch.no_grad()
    def on(self, device, ops, rows=0, **sizes) -> None:
        torch.set_default_dtype(LOW)  # fake parameters are not to be cast afterwards
        try:
            with device:
                config = configuration(self.operation, n_layer=LAYERS, **sizes).model
                model = build(config, ops).eval()
        finally:
            torch.set_default_dtype(torch.float32)
        if self.int8:
            quantize(model)
        count = rows or self.batch
        cached = CachedGPT(model, count)
        prompt = torch.zeros((count, 1), dtype=torch.int64, device=device)
        lengths = torch.ones(count, dtype=torch.int64, device=device)
        cached.fill(torch.arange(count, device=device), prompt, lengths)
        logits = cached.step(prompt[:, 0])
        seed = torch.zeros((), dtype=torch.int64, device=device)
        ops.sample_token(logits, temperature=1.0, top_k=0, top_p=1.0, seed=seed)


STEPS = (
    *(TrainingStep(name) for name in ("lecture", "shakespeare-char", "speedrun", "gpt2")),
    *(Evaluation(name) for name in ("lecture", "shakespeare-char", "speedrun", "gpt2")),
    *(DecodingStep(name, batch) for name in ("lecture", "gpt2") for batch in (1, 8)),
    DecodingStep("gpt2", 1, int8=True),
)
