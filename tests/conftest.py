"""The tests run compiled kernels on a GPU; without one they use Triton's interpreter."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its products in the interpreter are small

import hypothesis
import pytest
import torch

for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
    del os.environ[name]  # a pytest started by a test is not an xdist worker

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before kernels are imported: their decorators read it

torch.set_num_threads(1)
hypothesis.settings.register_profile(
    "kernels", derandomize=True, deadline=None, database=None, max_examples=20
)
hypothesis.settings.load_profile("kernels")


@pytest.fixture(autouse=True)
def without_tf32():
    """Undo the TF32 that a 16-bit run allows for the whole process."""
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with a finished run of two checkpoints in `run`, which no test may change."""
    from tests.runs import run  # imports kernels

    folder = tmp_path_factory.mktemp("trained")
    assert run(folder / "run", "--keep=1") == 0
    return folder


def pytest_configure(config):
    # the interpreter uses NumPy, which warns of overflow and 0/0 where a GPU computes silently
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")
    # Triton 3.6 converts arrays of one element to numbers, which NumPy has deprecated
    numbers = "ignore:Conversion of an array:DeprecationWarning:triton.runtime.interpreter"
    config.addinivalue_line("filterwarnings", numbers)


def pytest_report_header():
    if torch.cuda.is_available():
        return f"kernels: compiled on {torch.cuda.get_device_name()}"
    return "kernels: interpreted on the CPU (no GPU)"
