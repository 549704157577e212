"""The doctor: advice from given facts, and the facts of this machine."""

import os
import sys
from unittest import mock

import pytest
import torch

import kernels
from kernels.doctor import Facts, advice, examine, main, report

H200 = Facts(
    python="3.12.3",
    torch="2.11.0+cu130",
    cuda="13.0",
    hip=None,
    triton="3.6.0",
    numpy="2.5.0",
    driver=True,
    gpus=("NVIDIA H200",),
    capability=(9, 0),
    interpreter=False,
    auto="triton",
    reason="the GPU has compute capability 8.0 or newer",
    serving={"layer_norm": "triton"},
)
CPU = H200._replace(cuda=None, driver=False, gpus=(), capability=None, auto="torch", reason="CPU")


def test_a_machine_with_nothing_to_improve():
    assert "full speed" in report(H200)
    assert report(H200._replace(triton=None, auto="torch")).endswith("\nNothing to improve.")
    assert advice(H200) == advice(H200._replace(triton="3.9.1")) == []
    tested = CPU._replace(interpreter=True, triton="3.7.1", numpy="2.5.0")
    assert advice(tested) == advice(CPU)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (CPU, ["no GPU", "TRITON_INTERPRET=1", "--kernels triton"]),
        (CPU._replace(driver=True), ["built without CUDA", "pytorch.org"]),
        (CPU._replace(driver=True, cuda="13.0"), ["sees no GPU", "CUDA_VISIBLE_DEVICES", "13.0"]),
        (H200._replace(triton="3.10.0"), ["3.10.0", "newer than 3.9", "bench.ledger --check"]),
        (H200._replace(torch="2.9.1"), ["2.9.1", "torch>=2.11"]),
        (H200._replace(interpreter=True, numpy="2.3.5"), ["TRITON_INTERPRET=1", "unset"]),
        (CPU._replace(interpreter=True, numpy="2.4.0"), ["NumPy 2.4.0", "numpy<2.4", "3.7"]),
    ],
)
def test_each_problem_has_its_advice(facts, words):
    text = " ".join(advice(facts))
    assert all(word in text for word in words), text


def test_the_facts_are_those_of_this_process():
    facts = examine()
    assert facts.torch == torch.__version__
    assert facts.gpus == () or torch.cuda.is_available()
    assert facts.interpreter is not torch.cuda.is_available()  # as conftest sets it
    assert facts.serving == kernels.serving(kernels.load(facts.auto))


def test_an_old_gpu_uses_pytorch():
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(torch.cuda, "device_count", return_value=1),
        mock.patch.object(torch.cuda, "get_device_name", return_value="Tesla T4"),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(7, 5)),
        mock.patch.dict(os.environ, TRITON_INTERPRET="0"),  # a knob reads it each time
    ):
        facts = examine()
    assert (facts.auto, facts.gpus, facts.capability) == ("torch", ("Tesla T4",), (7, 5))
    assert "7.5" in facts.reason
    assert set(facts.serving.values()) == {"torch"}


def test_an_old_triton_uses_pytorch():
    with mock.patch("triton.__version__", "3.3.0"), mock.patch("triton.knobs", None):
        facts = examine()
    assert (facts.triton, facts.auto, facts.interpreter) == ("3.3.0", "torch", False)
    assert facts.reason == "triton 3.3.0 is older than 3.6"


def test_a_missing_triton_is_not_an_error():
    with mock.patch.dict(sys.modules, {"triton": None}):
        facts = examine()
    assert (facts.triton, facts.auto, facts.reason) == (None, "torch", "triton is not installed")


def test_the_report_is_printed(capsys):
    main([])
    printed = capsys.readouterr().out
    assert all(word in printed for word in (*kernels.Ops._fields, torch.__version__))


def test_the_kernels_are_not_available_on_an_amd_gpu():
    compiled = mock.patch.dict(os.environ, TRITON_INTERPRET="0")
    with mock.patch.object(torch.version, "hip", "7.0"), compiled:
        assert kernels.explain_auto("cuda")[0] == "torch"
        with pytest.raises(kernels.Unavailable, match=r"an AMD GPU.*--kernels torch"):
            kernels.load("triton", "cuda")
