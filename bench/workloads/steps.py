"""Whole steps of the presets: the kernels that training, evaluation and decoding launch.

`rows` is the batch size, or 0 for the usual one; `sizes` are changes to the model's config.
"""

from dataclasses import dataclass, replace

import torch

from bench.training import configuration, random_data
from gpt.generation.int8 import quantize
from gpt.generation.kv_cache import CachedGPT
from gpt.models.build import build
from gpt.training.evaluation import EVALUATION_TOKENS
from gpt.training.make_step import make_step
from gpt.training.optimizers import make_optimizers
from gpt.training.precision import Precision
from gpt.training.step import GraphStep

LOW = torch.bfloat16
LAYERS = 2  # all launch the same kernels


@dataclass(frozen=True)
class TrainingStep:
    """A training step as a CUDA graph captures it, in bf16."""

    operation: str  # a name of PRESETS

    def __str__(self):
        return f"training step of {self.operation}"

    def run(self, ops, device, **sizes) -> None:
        step = self.step(device, ops, **sizes)
        step.run(step.number)

    def step(self, device, ops, rows=0, **sizes) -> GraphStep:
        config = configuration(self.operation, **{"n_layer": LAYERS} | sizes)
        config = replace(config, batch_size=rows or config.batch_size)
        with device:
            model = build(config.model, ops)
        optimizers = make_optimizers(model, config, ops.adamw, LOW)
        text = random_data(config.model.vocab_size, device)
        return make_step(GraphStep, model, optimizers, text, config, Precision(device, LOW))


@dataclass(frozen=True)
class Evaluation:
    """The loss of one batch without gradients, in bf16."""

    operation: str  # a name of PRESETS

    def __str__(self):
        return f"evaluation of {self.operation}"

    @torch.no_grad()
    def run(self, ops, device, rows=0, **sizes) -> None:
        config = configuration(self.operation, n_layer=LAYERS, **sizes).model
        rows = rows or max(1, EVALUATION_TOKENS // config.block_size)
        with device:
            model = build(config, ops).eval()
            x, y = torch.zeros((2, rows, config.block_size), dtype=torch.int64)
        with Precision(device, LOW).autocast():
            model(x, y)


@dataclass(frozen=True)
class DecodingStep:
    """Prefill of a one-token prompt and one decode step, with weights in bf16."""

    operation: str  # a name of PRESETS
    batch: int
    int8: bool = False

    def __str__(self):
        return f"decoding by {self.operation}, batch {self.batch}{', int8' if self.int8 else ''}"

    @torch.no_grad()
    def run(self, ops, device, rows=0, **sizes) -> None:
        config, count = configuration(self.operation, n_layer=LAYERS, **sizes), rows or self.batch
        torch.set_default_dtype(LOW)  # fake parameters cannot be cast later
        try:
            with device:
                model = build(config.model, ops).eval()
        finally:
            torch.set_default_dtype(torch.float32)
        if self.int8:
            quantize(model)
        cached = CachedGPT(model, count)
        with device:
            prompt = torch.zeros((count, 1), dtype=torch.int64)
            seed = torch.zeros((), dtype=torch.int64)
        cached.prefill(prompt)
        logits = cached.decode_one_token(prompt[:, 0])
        ops.sample_token(logits, temperature=1.0, top_k=0, top_p=1.0, seed=seed)


STEPS = (
    *(TrainingStep(name) for name in ("lecture", "shakespeare-char", "speedrun", "gpt2")),
    *(Evaluation(name) for name in ("lecture", "shakespeare-char", "speedrun", "gpt2")),
    *(DecodingStep(name, batch) for name in ("lecture", "gpt2") for batch in (1, 4)),
    DecodingStep("gpt2", 1, int8=True),
)
