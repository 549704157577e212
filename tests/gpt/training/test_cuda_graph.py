"""Steps, evaluation and generation as CUDA graphs, by the stand-in: eager's results, in bits."""

import pytest
import torch

from gpt.config.model import ModelConfig
from gpt.generation import generate as generation
from gpt.generation.generate import generate
from gpt.training.cuda_graph import capture
from gpt.training.evaluation import EagerLoss, GraphedLoss
from gpt.training.optimizers import Muon
from gpt.training.step import DeviceStep, GraphStep, Precision, Step
from tests import graphs
from tests.gpt.training.test_cuda_graph_gpu import ReadsTheNorm, a_run

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there are graphs here")

MODEL = ModelConfig(vocab_size=16, block_size=8, n_layer=1, n_head=1, n_embd=16, dropout=0.2)
STEPS = 10  # three before the capture, and seven replays
CPU = torch.device("cpu")
TABLES = ["torch,adamw=triton", "triton"]  # PyTorch's own AdamW leaves steps out on a GPU alone


@pytest.fixture(autouse=True)
def device():
    with graphs.on_the_cpu() as device:
        yield device


def losses(kind, implementation, optimizer="adamw", rates_on_device=True, steps=STEPS, **options):
    options = {"model": MODEL, "batch_size": 2, "warmup_iters": 4, "max_iters": STEPS} | options
    step = a_run(kind, implementation, optimizer, "cpu", **options)
    for muon in (one for one in step.optimizers if isinstance(one, Muon) and rates_on_device):
        for group in muon.param_groups:  # as on a GPU
            group["lr"] = torch.tensor(group["lr"])
    torch.manual_seed(7)
    found = [step(number).item() for number in range(steps)]
    return found, [weight.detach().clone() for weight in step.model.parameters()]


@pytest.mark.parametrize(
    ("implementation", "optimizer", "passes"),
    [("triton", "adamw", 1), (TABLES[0], "muon", 2)],
)
def test_steps_are_eager_s(implementation, optimizer, passes):
    """Batches, learning rates and dropout masks change from replay to replay."""
    options = {"gradient_accumulation_steps": passes}
    eager, weights = losses(DeviceStep, implementation, optimizer, **options)
    graphed, others = losses(GraphStep, implementation, optimizer, **options)
    assert graphed == eager
    assert len(set(eager)) == STEPS
    for one, other in zip(weights, others, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("implementation", TABLES)
def test_evaluation_is_eager_s(implementation):
    step = a_run(Step, implementation, "adamw", "cpu", model=MODEL)
    model, precision = step.model.eval(), Precision(CPU, torch.bfloat16)
    graphed, eager = GraphedLoss(model, precision), EagerLoss(model, precision)
    with torch.no_grad():
        for first_row in (0, 4, 8):
            x, y = step.data.batch(0, first_row, 4, MODEL.block_size)
            assert torch.equal(graphed(x, y), eager(x, y))


def test_generation_is_eager_s(monkeypatch):
    model = a_run(Step, "triton", "adamw", "cpu", model=MODEL).model.eval()
    prompt = torch.randint(16, (2, 3), generator=torch.Generator().manual_seed(0))

    def tokens():
        generator = torch.Generator().manual_seed(3)
        made = generate(model, prompt, 12, generator=generator, slide=4)  # past the block
        return torch.stack(list(made))

    eager = tokens()
    monkeypatch.setattr(generation, "captures", lambda device: True)
    assert torch.equal(tokens(), eager)


# --- what the stand-in must not let pass ----------------------------------------------------------


class MakesANumber(GraphStep):
    def loss(self, x, y):
        return super().loss(x, y) * torch.tensor(1.0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [(ReadsTheNorm, "reads a value on the host"), (MakesANumber, "brings host data along")],
)
def test_what_waits_for_the_device_is_refused(kind, message):
    with pytest.raises(ValueError, match=f"(?s){message}.*use --step eager"):
        losses(kind, TABLES[0], step="graph")


def test_auto_goes_on_eagerly_where_a_step_cannot_be_captured(device, capsys):
    eager, weights = losses(DeviceStep, TABLES[0], steps=6)
    found, others = losses(ReadsTheNorm, TABLES[0], steps=6, step="auto")
    assert found == eager
    assert device.stream is device.default_stream
    for one, other in zip(weights, others, strict=True):
        assert torch.equal(one, other)
    (line,) = capsys.readouterr().out.splitlines()
    assert "reads a value on the host" in line
    assert line.endswith("steps are eager")


def test_a_capture_that_is_short_of_memory_says_so(device):
    """By the error that asks for a smaller batch, which is then tried on the same device."""

    def allocate():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        capture(allocate)
    assert device.stream is device.default_stream
    assert not device.is_generator_captured


def test_evaluation_and_generation_go_on_eagerly_too(monkeypatch, capsys):
    step = a_run(Step, "torch", "adamw", "cpu", model=MODEL)
    model, precision = step.model.eval(), Precision(CPU, torch.float32)
    x, y = step.data.batch(0, 0, 4, MODEL.block_size)
    prompt = torch.zeros(1, 3, dtype=torch.int64)
    expected = EagerLoss(model, precision)(x, y)
    eager = list(generate(model, prompt, 9, temperature=0.0))

    def embed(tokens):  # reads a value on the host
        return type(model).embed(model, tokens) * float(tokens.sum() >= 0)

    monkeypatch.setattr(model, "embed", embed)
    graphed = GraphedLoss(model, precision)
    with torch.no_grad():
        assert [graphed(x, y) for _ in range(3)] == [expected] * 3
    assert "evaluation cannot be captured" in capsys.readouterr().out
    monkeypatch.setattr(generation, "captures", lambda device: True)
    with pytest.warns(UserWarning, match="decoding cannot be captured"):
        assert list(generate(model, prompt, 9, temperature=0.0)) == eager


def test_a_learning_rate_that_is_a_number_shows():
    """Muon's is one on a CPU, and the graph goes on with that of its capture."""
    options = {"optimizer": "muon", "rates_on_device": False, "steps": 7}
    eager, _ = losses(DeviceStep, TABLES[0], **options)
    graphed, _ = losses(GraphStep, TABLES[0], **options)
    assert graphed[:5] == eager[:5]  # the fourth is captured, and the rate of the fifth is its own
    assert graphed[5:] != eager[5:]


def test_a_seed_that_is_a_number_shows():
    def seeded(kind):
        class Seeded(kind):
            def loss(self, x, y):
                self.calls = getattr(self, "calls", 0) + 1
                return super().loss(x, y) * 0 + torch.full((), float(self.calls))

        return losses(Seeded, TABLES[0], steps=6)[0]

    assert seeded(DeviceStep) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert seeded(GraphStep) == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0]
