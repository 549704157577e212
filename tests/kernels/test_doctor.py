"""What `auto` means on other machines, and the doctor's report of this one."""

import contextlib
import os
import sys
from unittest import mock

import pytest
import torch

import kernels
from kernels import doctor

COMPILED = mock.patch.dict(os.environ, TRITON_INTERPRET="0")  # a knob reads it each time
OLD_GPU = mock.patch.multiple(
    torch.cuda,
    is_available=lambda: True,
    device_count=lambda: 1,
    get_device_name=lambda device: "Tesla T4",
    get_device_capability=lambda device: (7, 5),
)
OLD_TRITON = mock.patch.multiple("triton", __version__="3.3.0", knobs=None)
NO_TRITON = mock.patch.dict(sys.modules, {"triton": None})


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ([COMPILED, OLD_GPU], ["Tesla T4", "torch: the GPU has compute capability 7.5"]),
        ([OLD_TRITON], ["3.3.0", "torch: triton 3.3.0 is older than 3.6"]),
        ([NO_TRITON], ["not installed", "torch: triton is not installed"]),
    ],
)
def test_where_the_kernels_cannot_run_the_report_says_why(machine, words):
    with contextlib.ExitStack() as patches:
        for patch in machine:
            patches.enter_context(patch)
        lines = doctor.report().splitlines()
    assert all(any(word in line for line in lines) for word in words)
    assert [line.split() for line in lines[-len(kernels.Ops._fields) :]] == [
        [operation, "torch"] for operation in kernels.Ops._fields
    ]


def test_the_kernels_are_not_available_on_an_amd_gpu():
    with mock.patch.object(torch.version, "hip", "7.0"), COMPILED:
        assert kernels.explain_auto("cuda")[0] == "torch"
        with pytest.raises(kernels.Unavailable, match=r"an AMD GPU.*--kernels torch"):
            kernels.load("triton", "cuda")
