"""CUDA graphs of steps, evaluation and generation give the bits of eager execution.

Without a GPU the stand-in of `tests/graphs.py` captures and replays.
"""

import contextlib

import pytest
import torch

from gpt.generation import generate as generation
from gpt.generation.generate import generate
from gpt.generation.sampling import Sampling
from gpt.training.cuda_graph import capture
from gpt.training.evaluation import BatchLoss
from gpt.training.muon import Muon
from gpt.training.precision import Precision
from gpt.training.step import DeviceStep, EagerStep, GraphStep
from kernels.common import launch
from tests import graphs
from tests.gpt.configs import draw_tokens
from tests.gpt.training.steps import DEVICE, SMALL, all_equal, step_over, weights_of
from tests.kernels.flash_attention.test_attention_qkv import Count

HAS_GPU = torch.cuda.is_available()
needs_stand_in = pytest.mark.skipif(HAS_GPU, reason="tests the stand-in for CUDA graphs")
STEPS = 5  # three before the capture, and two replays
# without a GPU, PyTorch's AdamW does not leave out updates
TABLES = ["torch,adamw=triton", "triton", *(["torch"] if HAS_GPU else [])]


@pytest.fixture(autouse=True)
def device():
    with contextlib.nullcontext() if HAS_GPU else graphs.on_the_cpu() as device:
        yield device


def train(kind, implementation, change=lambda step: None, **options):
    """The losses of some steps, and the step."""
    step = step_over(kind, implementation, **options)
    change(step)
    for muon in (one for one in step.gradients.optimizers if isinstance(one, Muon)):
        for group in muon.param_groups:  # as on a GPU; replays would repeat a Python number
            group["lr"] = torch.as_tensor(group["lr"])
    torch.manual_seed(7)
    return [step(number).item() for number in range(STEPS)], step


@pytest.mark.parametrize(
    ("implementation", "optimizer", "passes"),
    [("triton", "adamw", 1), (TABLES[0], "muon", 2)]
    + [(name, optimizer, 2) for name in TABLES[1:] for optimizer in ("adamw", "muon") if HAS_GPU],
)
def test_graph_steps_equal_eager_steps(implementation, optimizer, passes):
    """Batches, learning rates and dropout masks change from replay to replay.

    With one pass the graph computes with 16-bit copies of the weights, which AdamW rewrites, and
    the eager step casts the weights under autocast.
    """
    options = {"optimizer": optimizer, "gradient_accumulation_steps": passes}
    eager, step = train(EagerStep, implementation, **options)
    graphed, other = train(GraphStep, implementation, **options)
    assert graphed == eager
    assert len(set(eager)) == STEPS
    assert all_equal(weights_of(step), weights_of(other))
    assert len(other.gradients.copies) == (5 if passes == 1 else 0)  # four weights and a bias


def test_a_captured_step_zeroes_no_gradient_and_casts_no_weight():
    with launch.record(90):
        step = step_over(GraphStep, "triton")
        step.run(step.number)  # makes the state of the optimizer
        with Count() as count:
            step.run(step.number)
    assert "zero_" not in count.names
    assert count.names.count("add_") == 1  # to the number of steps that were not finite
    assert count.names.count("_to_copy") <= 4  # five weights have a copy in 16 bits


@pytest.mark.parametrize("implementation", TABLES)
def test_graphed_evaluation_equals_eager_evaluation(implementation):
    step = step_over(EagerStep, implementation)
    model, precision = step.gradients.model.eval(), Precision(DEVICE, torch.bfloat16)
    graphed, eager = BatchLoss(model, precision, graph=True), BatchLoss(model, precision)
    losses = set()
    with torch.no_grad():
        for first_row in range(0, 20, 4):  # three eager batches, then replays
            x, y = step.gradients.data.batch(0, first_row, 4, SMALL.block_size)
            losses.add(graphed(x, y).item())
            assert graphed(x, y) == eager(x, y)
            for weight in model.parameters():
                weight.mul_(0.9)
    assert len(losses) == 5


@pytest.mark.parametrize("implementation", TABLES[1:])
@pytest.mark.parametrize("temperature", [0.0, 1.0] if HAS_GPU else [1.0])
def test_graphed_generation_equals_eager_generation(implementation, temperature, monkeypatch):
    model = step_over(EagerStep, implementation).gradients.model.eval()
    prompts = draw_tokens(2, 3, vocab_size=16).to(DEVICE)

    def tokens(captures):
        monkeypatch.setattr(generation, "captures", lambda device: captures)
        options = {"generator": torch.Generator(DEVICE).manual_seed(3), "slide": 4}
        made = generate(model, prompts, 20, Sampling(temperature, 9), **options)  # past the block
        return torch.stack(list(made))

    assert torch.equal(tokens(captures=True), tokens(captures=False))


def use_host_tensor(step):
    loss = step.gradients.loss
    step.gradients.loss = lambda x, y: loss(x, y) * torch.tensor(1.0)


def read_norm_on_host(step):
    clip = step.gradients.clip
    step.gradients.clip = lambda: torch.full((), clip().item(), device=DEVICE)


@needs_stand_in
@pytest.mark.parametrize(
    ("change", "message"),
    [(read_norm_on_host, "reads a value on the host"), (use_host_tensor, "brings host data along")],
)
def test_step_graph_raises_if_a_step_waits_for_the_device(change, message):
    with pytest.raises(ValueError, match=f"(?s){message}.*use --step eager"):
        train(GraphStep, TABLES[0], step="graph", change=change)


def test_step_auto_runs_eagerly_if_a_step_cannot_be_captured(capsys):
    stream = torch.cuda.current_stream()
    eager, step = train(DeviceStep, TABLES[0])
    found, other = train(GraphStep, TABLES[0], read_norm_on_host)
    assert torch.cuda.current_stream() == stream
    assert found == eager
    assert all_equal(weights_of(step), weights_of(other))
    (line,) = capsys.readouterr().out.splitlines()
    assert "the training step cannot be captured as a CUDA graph" in line
    assert line.endswith("it runs eagerly")


@needs_stand_in
def test_capture_raises_out_of_memory_and_restores_the_device(device):
    def allocate():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        capture(allocate)
    assert device.stream is device.default_stream
    assert not device.is_generator_captured
