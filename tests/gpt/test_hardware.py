"""The peak FLOP/s of a GPU, the FLOPs of a model, and the choice of a device."""

from dataclasses import replace

import pytest
import torch

from gpt import hardware
from gpt.config.model import ModelConfig
from gpt.hardware import flops_per_token, peak_flops


@pytest.mark.parametrize(
    ("name", "peak"), [("H200", 989e12), ("H100 PCIe", 756e12), ("H100 80GB", 989e12), ("X1", None)]
)
def test_peak_flops_are_those_of_the_gpu(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA {name}")
    assert peak_flops(torch.device("cuda")) == peak
    assert peak_flops(torch.device("cpu")) is None


def test_flops_per_token_counts_parameters_and_the_window():
    """6 per parameter, and 12 C per layer and visible token."""
    config = ModelConfig(vocab_size=11, n_layer=2, n_embd=32, n_head=2, block_size=64)
    rope = replace(config, position="rope")
    assert flops_per_token(rope, 1000) == 6 * 1000 + 12 * 2 * 32 * 64
    assert flops_per_token(replace(rope, window=10), 1000) == 6 * 1000 + 12 * 2 * 32 * 10
    assert flops_per_token(replace(rope, window=65), 1000) == flops_per_token(rope, 1000)
    assert flops_per_token(config, 64 * 32) == 12 * 2 * 32 * 64


def test_the_chosen_gpu_is_the_current_one(monkeypatch):
    """Streams, graphs and generators use the current device."""
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert hardware.choose_device("cuda:1") == torch.device("cuda", 1)
    assert current == [1]
