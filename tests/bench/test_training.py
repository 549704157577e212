"""The timing of whole steps: what a row of figures says, on a model that is small enough."""

from dataclasses import replace

import pytest
import torch

from bench import training
from bench.prove.stages import loss, profile
from gpt.config.model import ModelConfig

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    model = ModelConfig(block_size=8, n_layer=1, n_head=2, n_embd=16, dropout=0.2)
    monkeypatch.setitem(training.SIZES, "lecture", {"model": model, "batch_size": 3})


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_a_row_says_what_was_timed(small, implementation):
    row = training.measure("lecture", training.Way(implementation), CPU, seconds=0.0)
    assert row["steps"] == training.LEAST_GROUPS * training.GROUP
    assert row["tokens_per_second"] == pytest.approx(3 * 8 / row["milliseconds"] * 1e3)
    low, high = row["milliseconds_p20_p80"]
    assert 0 < low <= row["milliseconds"] <= high
    assert row["mfu"] is None  # the peak of a CPU is not tabled


# what nanoGPT's model.py offers, and what it asks of its batches: `view` takes no strided tensor
NANOGPT = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.vocab_size)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas)

    def forward(self, idx, targets):
        logits = self.table(idx.view(-1))
        return logits, nn.functional.cross_entropy(logits, targets.view(-1))
"""


def test_nanogpt_s_step_gets_batches_as_its_own_are(small, tmp_path):
    (tmp_path / "model.py").write_text(NANOGPT)
    row = training.measure("lecture", training.Way("nanogpt"), CPU, seconds=0.0, nanogpt=tmp_path)
    assert row["tokens_per_second"] == pytest.approx(3 * 8 / row["milliseconds"] * 1e3)


def test_what_cannot_be_measured_says_why():
    graph, nanogpt = training.Way("torch", step="graph"), training.Way("nanogpt")
    assert "card" in training.why_not(graph, CPU, None)
    assert "checkout" in training.why_not(nanogpt, CPU, None)
    assert training.why_not(training.Way("torch"), CPU, None) is None


class Ended:
    def poll(self):
        return 0


def test_the_mark_is_passed_by_the_first_evaluation_at_or_below_it(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    lines = ['{"step": 25, "val_loss": 1.5}', '{"step": 30, "loss": 1.1}']
    lines += [f'{{"step": 50, "val_loss": {loss.MARK}}}', '{"step": 75, "val_loss": 1.3}']
    metrics.write_text("\n".join(lines) + '\n{"step": 80, "val_l')
    assert loss.watch(metrics, Ended(), deadline=float("inf"))["step"] == 50
    metrics.write_text(lines[0] + "\n")
    assert loss.watch(metrics, Ended(), deadline=float("inf")) is None
    assert loss.watch(tmp_path / "none.jsonl", Ended(), deadline=float("inf")) is None


def test_every_way_of_every_preset_has_its_part():
    from bench.prove.stages import step

    assert len(step.PARTS) == len(training.SIZES) * len(training.WAYS)
    assert replace(training.PRESETS["gpt2"], **training.SIZES["gpt2"]).batch_size == 32


def test_the_kernels_of_a_replay_are_told_by_kind():
    events = [("nvjet_sm90_tst", 30.0), ("attention_forward_kernel", 40.0)]
    events += [("void cublasLt::splitKreduce_kernel<32>", 10.0), ("Memset (Unknown)", 4.0)]
    events += [("void at::native::reduce_kernel<128>", 6.0), ("attention_forward_kernel", 10.0)]
    told = [(row["kernel"], row["launches"], row["share"]) for row in profile.rows("gpt2", events)]
    assert told == [
        ("attention_forward_kernel", 2, 0.5),
        ("matrix products of cuBLAS", 2, 0.4),
        ("PyTorch's other kernels", 1, 0.06),
        ("copies and fills", 1, 0.04),
    ]
