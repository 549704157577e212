"""The peak FLOP/s of a GPU, the FLOPs of a model, and the choice of a device."""

import itertools
from dataclasses import replace

import pytest
import torch

from gpt import hardware
from gpt.config.model import ModelConfig
from gpt.hardware import flops_per_token, peak_flops, product_rate

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "tera"), [("H200", 989), ("H100 PCIe", 756), ("H100 80GB HBM3", 989), ("X1", 5)]
)
def test_peak_flops_are_known_or_measured_once(monkeypatch, name, tera):
    measured = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA {name}")
    monkeypatch.setattr(hardware, "product_rate", lambda device: measured.append(device) or 5e12)
    peak_flops.cache_clear()
    gpu = torch.device("cuda")
    assert [peak_flops(gpu), peak_flops(gpu)] == [tera * 1e12] * 2
    assert measured == [gpu] * (name == "X1")
    peak_flops.cache_clear()
    assert peak_flops(CPU) is None


def test_flops_per_token_counts_parameters_and_the_window():
    """6 per parameter, and 12 C per layer and visible token."""
    config = ModelConfig(vocab_size=11, n_layer=2, n_embd=32, n_head=2, block_size=64)
    rope = replace(config, position="rope")
    assert flops_per_token(rope, 1000) == 6 * 1000 + 12 * 2 * 32 * 64
    assert flops_per_token(replace(rope, window=10), 1000) == 6 * 1000 + 12 * 2 * 32 * 10
    assert flops_per_token(replace(rope, window=65), 1000) == flops_per_token(rope, 1000)
    assert flops_per_token(config, 64 * 32) == 12 * 2 * 32 * 64


def test_product_rate_counts_every_product(monkeypatch):
    clock = itertools.count()  # one second per call
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(clock))
    assert product_rate(CPU, size=16, products=3) == 3 * 2 * 16**3


def test_the_chosen_gpu_is_the_current_one(monkeypatch):
    """Streams, graphs and generators use the current device."""
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert hardware.choose_device("cuda:1") == torch.device("cuda", 1)
    assert current == [1]
