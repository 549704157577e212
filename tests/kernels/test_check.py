"""`kernels.check` passes for the kernels and names every broken operation."""

import re

import pytest
import torch

import kernels
from kernels import check, doctor
from tests.operands import DEVICE

OPS = kernels.load("triton", DEVICE)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(check, "SIZES", ((2, 17, 12, 2, 11),))


def test_the_kernels_pass_whatever_the_precision_of_products():
    torch.set_float32_matmul_precision("high")
    assert check.failures(OPS, torch.device(DEVICE)) == {}
    assert torch.get_float32_matmul_precision() == "high"


def a_tenth_more(operation):
    """The operation with a result, or an optimizer with a learning rate, that is 10% too large."""

    def broken(*operands, **options):
        if "lr" in options:
            return operation(*operands, **options | {"lr": 1.1 * options["lr"]})
        result = operation(*operands, **options)
        if isinstance(result, tuple):
            return 1.1 * result[0], *result[1:]
        return 1.1 * result if result.is_floating_point() else result + 1

    return broken


@pytest.mark.parametrize("name", kernels.Ops._fields)
def test_an_error_of_a_tenth_is_reported(name):
    ops = OPS._replace(**{name: a_tenth_more(getattr(OPS, name))})
    reason = check.failure(name, ops, torch.device(DEVICE), [torch.float32])
    assert re.fullmatch(r"differs from PyTorch by .*% in float32", reason)


@pytest.mark.parametrize("factor", [1.25, torch.nan])
def test_the_error_is_relative_to_the_norm_and_nan_is_reported(factor):
    ops = OPS._replace(layer_norm=lambda *operands: factor * OPS.layer_norm(*operands))
    reason = check.failure("layer_norm", ops, torch.device(DEVICE), [torch.float32])
    assert reason == f"differs from PyTorch by {100 * (factor - 1):.2g}% in float32"


def test_the_doctor_prints_the_results(monkeypatch, capsys):
    found = {}
    monkeypatch.setattr(check, "failures", lambda ops, device: found)
    assert doctor.main(["--check"]) == 0
    assert "layer_norm: agrees with PyTorch" in capsys.readouterr().out
    found["sample_token"] = "the reason"
    assert doctor.main(["--check"]) == 1
    assert "sample_token: the reason" in capsys.readouterr().out
