"""The same tests run compiled on a GPU and, where there is none, in Triton's interpreter."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the interpreter's products are small

import hypothesis
import pytest
import torch

for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
    del os.environ[name]  # a pytest that a test starts is no worker of ours

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated: before any import

torch.set_num_threads(1)
hypothesis.settings.register_profile(
    "kernels", derandomize=True, deadline=None, database=None, max_examples=20
)
hypothesis.settings.register_profile(
    "thousand", deadline=None, database=None, max_examples=1000, print_blob=True
)
hypothesis.settings.load_profile("kernels")


@pytest.fixture(autouse=True)
def without_tf32():
    """A run in 16 bits allows TF32 for the whole process, and with it for the tests behind it."""
    yield
    torch.set_float32_matmul_precision("highest")


def pytest_configure(config):
    # the interpreter is NumPy: an overflow or 0/0 that a GPU would compute silently is a warning
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")
    # triton 3.6 lets NumPy before 2.4 take an array of one element for a number, and is told so
    numbers = "ignore:Conversion of an array:DeprecationWarning:triton.runtime.interpreter"
    config.addinivalue_line("filterwarnings", numbers)


def pytest_report_header():
    if torch.cuda.is_available():
        return f"kernels: compiled, on {torch.cuda.get_device_name()}"
    return "kernels: interpreted, on the CPU (no GPU here)"
