"""The timing of whole training steps, on a small model on a CPU."""

import pytest
import torch

from bench import training
from bench.prove.stages import loss, profile
from gpt.config.model import ModelConfig
from tests.bench.peers import NANOGPT

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    model = ModelConfig(block_size=8, n_layer=1, n_head=2, n_embd=16, dropout=0.2)
    monkeypatch.setitem(training.SIZES, "lecture", {"model": model, "batch_size": 3})


@pytest.mark.parametrize("implementation", ["reference", "torch", "nanogpt"])
def test_row_has_rates_and_spread(small, implementation, tmp_path):
    (tmp_path / "model.py").write_text(NANOGPT)
    row = training.measure("lecture", training.Variant(implementation), CPU, 0.0, tmp_path)
    assert row["steps"] == training.MIN_GROUPS * training.GROUP
    assert row["tokens_per_second"] == pytest.approx(3 * 8 / row["milliseconds"] * 1e3)
    low, high = row["milliseconds_p20_p80"]
    assert 0 < low <= row["milliseconds"] <= high
    assert row["mfu"] is None  # the peak of a CPU is unknown


def test_first_evaluation_at_or_below_the_loss_counts(tmp_path):
    written = ""
    for step, key, value in ((25, "val_loss", 1.5), (30, "loss", 1.1), (50, "val_loss", 1.4697)):
        assert loss.first_evaluation(tmp_path) is None
        written += f'{{"step": {step}, "{key}": {value}}}\n'
        (tmp_path / "metrics.jsonl").write_text(written + '{"step": 80, "val_l')
    assert loss.first_evaluation(tmp_path)["step"] == 50


def test_kernels_of_a_replay_are_grouped_by_kind():
    events = [("nvjet_sm90_tst", 30.0), ("attention_forward_kernel", 40.0)]
    events += [("void cublasLt::splitKreduce_kernel<32>", 10.0), ("Memset (Unknown)", 4.0)]
    events += [("void at::native::reduce_kernel<128>", 6.0), ("attention_forward_kernel", 10.0)]
    rows = profile.kernel_rows("gpt2", events)
    assert [(row["kernel"], row["launches"], row["share"]) for row in rows] == [
        ("attention_forward_kernel", 2, 0.5),
        ("matrix products of cuBLAS", 2, 0.4),
        ("PyTorch's other kernels", 1, 0.06),
        ("copies and fills", 1, 0.04),
    ]
