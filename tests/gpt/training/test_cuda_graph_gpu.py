"""A step as one CUDA graph takes the very steps that the eager one takes."""

import dataclasses

import pytest
import torch

import kernels
from gpt.config.model import ModelConfig
from gpt.config.presets import PRESETS
from gpt.data.batches import Data
from gpt.data.tokenizers import ByteTokenizer
from gpt.models.activation_checkpointing import recompute_blocks
from gpt.models.packed import GPT
from gpt.training.optimizers import make_optimizers
from gpt.training.step import DeviceStep, GraphStep, Precision, Step, choose_step
from tests.numerics import DEVICE

needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")

MODEL = ModelConfig(vocab_size=256, block_size=32, n_layer=2, n_head=2, n_embd=32, dropout=0.2)


def a_run(kind, implementation: str, optimizer: str, device: str, **options):
    options = {"model": MODEL, "batch_size": 4, "optimizer": optimizer, **options}
    config = dataclasses.replace(PRESETS["shakespeare-char"], **options)
    generator = torch.Generator().manual_seed(0)
    vocabulary = config.model.vocab_size
    tokens = torch.randint(vocabulary, (2000,), generator=generator, dtype=torch.int32).to(device)
    data = Data("random", tokens, tokens, ByteTokenizer(), device)
    ops = kernels.load(implementation)
    torch.manual_seed(1)
    model = GPT(config.model, ops).to(device)
    optimizers = make_optimizers(model, config, ops.adamw)
    return kind(model, optimizers, data, config, Precision(torch.device(device), torch.bfloat16))


@needs_card
@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_graph_and_eager_give_the_same_losses_bit_for_bit(implementation, optimizer):
    losses = {}
    for kind in (Step, GraphStep):
        step = a_run(kind, implementation, optimizer, "cuda:0", gradient_accumulation_steps=2)
        torch.cuda.manual_seed(7)
        losses[kind] = [step(number).item() for number in range(12)]
    assert losses[Step] == losses[GraphStep]


@needs_card
@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_a_graph_holds_blocks_that_are_computed_again(implementation):
    model = dataclasses.replace(MODEL, dropout=0.0)
    losses = {}
    for recompute in (False, True):
        step = a_run(GraphStep, implementation, "adamw", "cuda:0", model=model)
        if recompute:
            recompute_blocks(step.model, model)
        losses[recompute] = [step(number).item() for number in range(8)]
    assert losses[True] == losses[False]


@needs_card
def test_dropout_in_blocks_that_are_computed_again_is_not_for_a_graph():
    step = a_run(Step, "torch", "adamw", "cuda:0", activation_checkpointing=True)
    kind, reason = choose_step(step.config, step.precision, step.data)
    assert kind is not GraphStep
    assert "sets generators back" in reason


@needs_card
@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_every_replay_drops_other_elements(implementation):
    # without learning, and on the same batch, losses differ by their dropout masks alone
    step = a_run(GraphStep, implementation, "adamw", "cuda:0", learning_rate=0.0, decay_lr=False)
    losses = [step(0).item() for _ in range(8)]
    assert len(set(losses)) == len(losses)


class ReadsTheNorm(GraphStep):
    """Which a GPU refuses to capture."""

    def clip(self):
        return torch.full((), super().clip().item(), device=self.precision.device)


@needs_card
def test_a_step_that_cannot_be_captured_goes_on_eagerly(capsys):
    losses = {}
    for kind in (DeviceStep, ReadsTheNorm):
        step = a_run(kind, "triton", "adamw", "cuda:0")
        torch.cuda.manual_seed(7)
        losses[kind] = [step(number).item() for number in range(8)]
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert losses[ReadsTheNorm] == losses[DeviceStep]
    assert "steps are eager" in capsys.readouterr().out


def test_copies_in_16_bits_change_no_bit():
    """The weights of linear layers as copies that AdamW rewrites, against autocast's casts."""
    options = {"model": dataclasses.replace(MODEL, vocab_size=32), "batch_size": 1}
    eager, copying = (
        a_run(kind, "triton", "adamw", DEVICE, **options) for kind in (DeviceStep, GraphStep)
    )
    assert len(copying.copies) == 2 * (4 + 1)  # of two blocks: weights, and one bias
    for number in range(3):
        torch.manual_seed(number)
        loss = DeviceStep.take(eager, number)
        torch.manual_seed(number)
        assert torch.equal(DeviceStep.take(copying, number), loss)
    weights = dict(copying.model.named_parameters())
    for (name, weight), other in zip(weights.items(), eager.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    for name, copy in copying.copies.items():
        assert torch.equal(copy, weights[name].bfloat16()), name


def test_the_number_of_a_step_may_live_on_the_device():
    one, other = (a_run(Step, "torch", "muon", "cpu") for _ in range(2))
    torch.manual_seed(3)
    by_number, _ = one.backward(5)
    torch.manual_seed(3)
    by_tensor, _ = other.backward(torch.tensor(5))
    assert torch.equal(by_number, by_tensor)


def test_a_graph_is_refused_without_a_card_and_auto_says_why():
    step = a_run(Step, "torch", "adamw", "cpu")
    kind, reason = choose_step(step.config, step.precision, step.data)
    assert kind is Step
    assert "the device is cpu" in reason
    asked = dataclasses.replace(step.config, step="graph")
    with pytest.raises(ValueError, match="--step graph cannot be had: the device is cpu"):
        choose_step(asked, step.precision, step.data)
