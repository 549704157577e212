"""The peak FLOP/s of a GPU, the FLOPs of a model, and the choice of a device."""

import itertools
from dataclasses import replace

import pytest
import torch

from gpt import hardware
from gpt.config.model import ModelConfig
from gpt.hardware import flops_per_token, peak_flops, product_rate

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _measure_again():
    peak_flops.cache_clear()
    yield
    peak_flops.cache_clear()


@pytest.mark.parametrize(
    ("name", "tera"),
    [("NVIDIA H200", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 80GB HBM3", 989)],
)
def test_peak_flops_of_a_known_gpu(monkeypatch, name, tera):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(hardware, "product_rate", lambda device: pytest.fail("it is known"))
    assert peak_flops(torch.device("cuda")) == tera * 1e12


def test_peak_flops_of_an_unknown_gpu_are_measured_once(monkeypatch):
    measured = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X1")
    monkeypatch.setattr(hardware, "product_rate", lambda device: measured.append(device) or 5e12)
    gpu = torch.device("cuda")
    assert [peak_flops(gpu), peak_flops(gpu)] == [5e12, 5e12]
    assert measured == [gpu]


def test_flops_per_token_counts_parameters_and_the_window():
    """6 per parameter, and 12 C per layer and visible token."""
    config = ModelConfig(vocab_size=11, n_layer=2, n_embd=32, n_head=2, block_size=64)
    rope = replace(config, position="rope")
    assert flops_per_token(rope, 1000) == 6 * 1000 + 12 * 2 * 32 * 64
    assert flops_per_token(replace(rope, window=10), 1000) == 6 * 1000 + 12 * 2 * 32 * 10
    assert flops_per_token(replace(rope, window=65), 1000) == flops_per_token(rope, 1000)
    assert flops_per_token(config, 64 * 32) == 12 * 2 * 32 * 64


def test_a_cpu_has_no_peak_flops():
    assert peak_flops(CPU) is None


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
