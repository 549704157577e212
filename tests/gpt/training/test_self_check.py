"""The comparison before a first run: what it finds, says and remembers, with broken kernels."""

from dataclasses import replace

import pytest
import torch

import kernels
from bench.training import a_text
from gpt import UserError
from gpt.config.model import ModelConfig
from gpt.config.train import TrainConfig
from gpt.training import self_check
from gpt.training.step import Precision
from kernels import check
from tests.numerics import DEVICE, DTYPES

OPS, PEER = kernels.load("triton", DEVICE), kernels.load("torch")
MODEL = ModelConfig(
    vocab_size=11, block_size=8, n_layer=3, n_head=2, n_embd=16, dropout=0.2, qkv_bias=True
)
DATA = a_text(MODEL.vocab_size, torch.device(DEVICE))
CONFIG = TrainConfig(model=MODEL, batch_size=3, kernels="auto", dtype="float32")


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(check, "SIZES", ((2, 17, 12, 2, 11),))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def trusted(ops, config=CONFIG, dtype=torch.float32):
    precision = Precision(torch.device(DEVICE), dtype)
    return self_check.trusted(ops, PEER, check, DATA, config, precision)


def compare(ops, dtype=torch.float32):
    return self_check.compare(ops, PEER, DATA, CONFIG, Precision(torch.device(DEVICE), dtype))


def off(operation):
    return lambda *operands, **options: 1.5 * operation(*operands, **options)


BROKEN = OPS._replace(layer_norm=off(OPS.layer_norm))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernels_are_trusted(dtype):
    found = compare(OPS, dtype)
    assert found.is_good
    assert found.expected == pytest.approx(2.4, abs=0.4)  # log 11 of a model that knows nothing


def test_the_error_is_that_of_all_gradients():
    """A head whose gradient is k times what it is: the error is known."""
    doubled = PEER._replace(linear_cross_entropy=off(PEER.linear_cross_entropy))
    found = compare(doubled)
    assert found.error == pytest.approx(0.5, rel=1e-4)
    assert found.loss == pytest.approx(1.5 * found.expected, rel=1e-4)
    assert not found.is_good


def test_a_comparison_is_told_once_and_remembered(capsys):
    assert trusted(OPS) is OPS
    assert "kernels checked against PyTorch: loss" in capsys.readouterr().out
    assert trusted(OPS) is OPS
    assert capsys.readouterr().out == ""
    larger = replace(CONFIG, model=replace(MODEL, n_embd=32))
    trusted(OPS, larger)
    assert "loss" in capsys.readouterr().out  # another model is compared anew


def test_a_cache_that_cannot_be_written_costs_a_comparison(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert trusted(OPS) is OPS
        assert "kernels checked" in capsys.readouterr().out


def test_auto_serves_what_is_broken_by_pytorch(capsys):
    ops = trusted(BROKEN)
    assert ops == OPS._replace(layer_norm=PEER.layer_norm)
    said = capsys.readouterr().out
    assert "kernels differ from PyTorch: loss" in said
    assert "PyTorch serves layer_norm; please report" in said


def test_auto_is_served_by_pytorch_alone_where_nothing_is_found_to_blame(monkeypatch, capsys):
    monkeypatch.setattr(check, "failures", lambda *arguments: {})
    assert trusted(BROKEN) == PEER
    assert "PyTorch serves embedding, layer_norm," in capsys.readouterr().out


def test_a_kernel_that_does_not_compile_is_served_by_pytorch():
    def raises(*operands, **options):
        raise RuntimeError("out of resource: shared memory")

    ops = trusted(OPS._replace(attention_qkv=raises))
    assert ops == OPS._replace(attention_qkv=PEER.attention_qkv)


def test_a_gpu_without_memory_is_no_fault_of_the_kernels():
    def full(*operands, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        trusted(OPS._replace(attention_qkv=full))


def test_kernels_that_were_asked_for_are_refused():
    message = r"--kernels triton on .*: kernels differ from PyTorch: loss .*use --kernels torch"
    with pytest.raises(UserError, match=message):
        trusted(BROKEN, replace(CONFIG, kernels="triton"))
    with pytest.raises(UserError, match=message):  # a bad verdict is not remembered
        trusted(BROKEN, replace(CONFIG, kernels="triton"))


def test_the_run_s_random_numbers_are_as_if_nothing_had_been_compared():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trusted(OPS)
    assert torch.equal(torch.rand(3), expected)
