"""The same tests run compiled on a GPU and, where there is none, in Triton's interpreter."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated: before any import


def pytest_report_header():
    if torch.cuda.is_available():
        return f"kernels: compiled, on {torch.cuda.get_device_name()}"
    return "kernels: interpreted, on the CPU (no GPU here)"
