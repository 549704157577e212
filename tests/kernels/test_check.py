"""`kernels.check` passes for the kernels and names every broken operation."""

import re

import pytest
import torch

import kernels
from kernels import check, doctor
from tests.operands import DEVICE

SMALL = ((2, 17, 12, 2, 11),)
OPS = kernels.load("triton", DEVICE)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(check, "SIZES", SMALL)


def test_the_kernels_pass():
    assert check.failures(OPS, torch.device(DEVICE)) == {}


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


def test_the_error_is_relative_to_the_norm():
    ops = OPS._replace(layer_norm=lambda *operands: 1.25 * OPS.layer_norm(*operands))
    error = check.largest_error("layer_norm", ops, torch.device(DEVICE), torch.float32, SMALL[0])
    assert error == pytest.approx(0.25, rel=1e-4)


def test_an_exception_is_reported_with_its_first_line():
    def raises(*operands):
        raise RuntimeError("no kernel image\nfor this GPU")

    found = check.failures(OPS._replace(rms_norm=raises), torch.device(DEVICE), [torch.float32])
    assert found == {"rms_norm": "RuntimeError: no kernel image"}


def test_nan_is_an_error():
    ops = OPS._replace(layer_norm=lambda *operands: torch.nan * OPS.layer_norm(*operands))
    assert "layer_norm" in check.failures(ops, torch.device(DEVICE), [torch.float32])


def test_tf32_is_disabled_and_restored():
    torch.set_float32_matmul_precision("high")
    assert check.failures(OPS, torch.device(DEVICE), [torch.float32]) == {}
    assert torch.get_float32_matmul_precision() == "high"


def test_the_doctor_prints_the_results(monkeypatch, capsys):
    assert doctor.main(["--check"]) == 0
    assert "layer_norm: agrees with PyTorch" in capsys.readouterr().out
    broken = OPS._replace(sample_token=a_tenth_more(OPS.sample_token))
    monkeypatch.setattr(kernels, "load", lambda *choice: broken)
    assert doctor.main(["--check"]) == 1
    assert "sample_token: differs from PyTorch by" in capsys.readouterr().out
