"""Small training steps, and what several tests do to them."""

from dataclasses import replace
from functools import partial

import torch

import kernels
from gpt.config.model import ModelConfig
from gpt.config.presets import PRESETS
from gpt.data.batches import TokenDataset
from gpt.data.tokenizers import CharTokenizer
from gpt.models.packed import GPT
from gpt.training.make_step import make_step
from gpt.training.optimizers import make_optimizers
from gpt.training.precision import Precision
from tests.gpt.configs import draw_tokens

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
SMALL = ModelConfig(vocab_size=16, block_size=8, n_layer=1, n_head=1, n_embd=16, dropout=0.2)
# what `kernels.torch_ops.adamw` constructs on a GPU: it reads `found_inf`
fused_adamw = partial(torch.optim.AdamW, fused=True)


def small_step(
    kind, model, config, adamw=torch.optim.AdamW, dtype=torch.float32, dataset=TokenDataset
):
    """A step of class `kind` on 300 random tokens, on the device of `model`."""
    device = next(model.parameters()).device
    tokens = draw_tokens(1, 300, vocab_size=config.model.vocab_size)[0].to(device)
    data = dataset("text", tokens, tokens, CharTokenizer("abcdefghijk"), device)
    optimizers = make_optimizers(model, config, adamw)
    return make_step(kind, model, optimizers, data, config, Precision(device, dtype))


def step_over(kind, implementation, **options):
    """A step in bf16 over the operations that `--kernels implementation` selects."""
    options = {"model": SMALL, "batch_size": 2, "warmup_iters": 4, "max_iters": 10} | options
    config = replace(PRESETS["shakespeare-char"], **options)
    ops = kernels.load(implementation)
    torch.manual_seed(1)
    model = GPT(config.model, ops).to(DEVICE)
    return small_step(kind, model, config, ops.adamw, torch.bfloat16)


def weights_of(step):
    return [weight.detach().clone() for weight in step.gradients.model.parameters()]


def state_of(step):
    """Copies of everything that an update changes."""
    states = (s for optimizer in step.gradients.optimizers for s in optimizer.state.values())
    return weights_of(step) + [value.clone() for s in states for value in s.values()]


def all_equal(tensors, others):
    """Whether all pairs of tensors are equal bit for bit."""
    return all(one.equal(other) for one, other in zip(tensors, others, strict=True))
