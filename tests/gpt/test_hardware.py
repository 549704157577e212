"""What a utilisation is a share of: a card's tabled peak, or the measured one."""

import itertools

import pytest
import torch

from gpt import hardware
from gpt.hardware import peak_flops, product_rate

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "tera"),
    [("NVIDIA H200", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 80GB HBM3", 989)],
)
def test_a_tabled_card_s_peak(monkeypatch, name, tera):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(hardware, "product_rate", lambda device: pytest.fail("is tabled"))
    peak_flops.cache_clear()
    assert peak_flops(torch.device("cuda")) == tera * 1e12
    peak_flops.cache_clear()


def test_another_card_s_is_measured_once(monkeypatch):
    measured = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X1")
    monkeypatch.setattr(hardware, "product_rate", lambda device: measured.append(device) or 5e12)
    peak_flops.cache_clear()
    card = torch.device("cuda")
    assert [peak_flops(card), peak_flops(card)] == [5e12, 5e12]
    assert measured == [card]
    peak_flops.cache_clear()


def test_without_a_card_there_is_no_peak():
    assert peak_flops(CPU) is None


def test_the_rate_counts_every_product(monkeypatch):
    clock = itertools.count()  # a second between one look and the next
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(clock))
    assert product_rate(CPU, size=16, products=3) == 3 * 2 * 16**3
