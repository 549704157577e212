"""Steps, evaluation and generation as CUDA graphs, by the stand-in: eager's results, in bits."""

import pytest
import torch

from gpt import generate as generation
from gpt.evaluate import EagerLoss, GraphedLoss
from gpt.generate import generate
from gpt.optim import Muon
from gpt.presets import ModelConfig
from gpt.step import DeviceStep, GraphStep, Precision, Step
from tests import graphs
from tests.gpt.test_graph import a_run

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there are graphs here")

MODEL = ModelConfig(vocab_size=16, block_size=8, n_layer=1, n_head=1, n_embd=16, dropout=0.2)
STEPS = 10  # three before the capture, and seven replays
CPU = torch.device("cpu")
TABLES = ["torch,adamw=triton", "triton"]  # PyTorch's own AdamW leaves steps out on a GPU alone


@pytest.fixture(autouse=True)
def captured():
    with graphs.on_the_cpu():
        yield


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
    [("triton", "adamw", 1), (TABLES[0], "adamw", 2), (TABLES[0], "muon", 1)],
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
        for rows in (4, 4, 4):
            x, y = step.data.batch(0, 4 * rows, rows, MODEL.block_size)
            assert torch.equal(graphed(x, y), eager(x, y))
        x, y = step.data.batch(1, 0, 3, MODEL.block_size)  # the rest is padded, and does not count
        torch.testing.assert_close(graphed(x, y), eager(x, y), rtol=1e-5, atol=0)


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


class ReadsTheLoss(GraphStep):
    def clip(self):
        self.gradients_norm = super().clip().item()
        return torch.tensor(0.0)


class MakesANumber(GraphStep):
    def loss(self, x, y):
        return super().loss(x, y) * torch.tensor(1.0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [(ReadsTheLoss, "reads a value on the host"), (MakesANumber, "brings host data along")],
)
def test_what_waits_for_the_device_is_refused(kind, message):
    with pytest.raises(RuntimeError, match=message):
        losses(kind, TABLES[0])


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
