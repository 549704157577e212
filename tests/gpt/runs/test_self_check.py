"""The comparison with PyTorch before a first run: its result, output and cache."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

import kernels
from bench.training import random_data
from gpt import UserError
from gpt.config.train import TrainConfig
from gpt.runs import self_check
from gpt.training.precision import Precision
from kernels import check
from tests.gpt.configs import LECTURE
from tests.operands import DEVICE, DTYPES

OPS, PEER = kernels.load("triton", DEVICE), kernels.load("torch")
MODEL = replace(LECTURE, n_layer=3, n_embd=16, dropout=0.2, qkv_bias=True)
DATA = random_data(MODEL.vocab_size, torch.device(DEVICE))
CONFIG = TrainConfig(model=MODEL, batch_size=3, kernels="auto", dtype="float32")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def checked(ops, config=CONFIG):
    precision = Precision(torch.device(DEVICE), torch.float32)
    return self_check.checked(ops, PEER, check, DATA, config, precision)


def compare(ops, dtype=torch.float32):
    return self_check.compare(ops, PEER, DATA, CONFIG, Precision(torch.device(DEVICE), dtype))


def scaled(operation):
    return lambda *operands, **options: 1.5 * operation(*operands, **options)


BROKEN = OPS._replace(layer_norm=scaled(OPS.layer_norm))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_correct_kernels_pass(dtype):
    found = compare(OPS, dtype)
    assert found.is_good
    assert found.expected == pytest.approx(2.4, abs=0.4)  # log 11 before training


def test_the_error_is_that_of_all_gradients_together():
    found = compare(PEER._replace(linear_cross_entropy=scaled(PEER.linear_cross_entropy)))
    assert found.error == pytest.approx(0.5, rel=1e-4)
    assert found.loss == pytest.approx(1.5 * found.expected, rel=1e-4)
    assert not found.is_good


def test_a_good_result_is_printed_once_cached_and_draws_no_number(capsys, monkeypatch, tmp_path):
    state = torch.get_rng_state()
    assert checked(OPS) is OPS
    assert torch.equal(torch.get_rng_state(), state)
    assert "kernels checked against PyTorch: loss" in capsys.readouterr().out
    assert checked(OPS) is OPS
    assert capsys.readouterr().out == ""
    checked(OPS, replace(CONFIG, model=replace(MODEL, n_embd=32)))
    assert "loss" in capsys.readouterr().out  # another model is not cached
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # cannot be written
    assert checked(OPS) is OPS
    assert "kernels checked" in capsys.readouterr().out
    monkeypatch.setattr(self_check, "cache_dir", lambda: None)
    assert checked(OPS) is OPS
    assert "kernels checked" in (printed := capsys.readouterr().out)
    assert "nothing is cached without a home" in printed


def test_broken_kernels_are_replaced_or_raise_if_selected_by_name(capsys):
    message = r"--kernels triton on .*: kernels differ from PyTorch: loss .*use --kernels torch"
    for _ in range(2):  # a bad result is not cached
        assert checked(BROKEN) is PEER
        printed = capsys.readouterr().out
        assert "kernels differ from PyTorch: loss" in printed
        assert "using PyTorch's operations instead; please report" in printed
        with pytest.raises(UserError, match=message):
            checked(BROKEN, replace(CONFIG, kernels="triton"))


def test_kernels_that_do_not_compile_are_replaced_and_out_of_memory_is_raised():
    attention = Mock(side_effect=RuntimeError("out of resource: shared memory"))
    assert checked(OPS._replace(attention_qkv=attention)) is PEER
    attention.side_effect = torch.OutOfMemoryError("CUDA")
    with pytest.raises(torch.OutOfMemoryError):
        checked(OPS._replace(attention_qkv=attention))
