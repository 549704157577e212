"""The tests run compiled kernels on a GPU; without one they use Triton's interpreter."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its products in the interpreter are small

import pytest
import torch
from hypothesis import settings

for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
    del os.environ[name]  # a pytest started by a test is not an xdist worker

torch.set_num_threads(1)
settings.register_profile("all", derandomize=True, deadline=None, database=None, max_examples=20)
settings.load_profile("all")


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


def pytest_addoption(parser):
    parser.addoption("--ptx", type=int, metavar="80", help="execute the PTX of an architecture")


@pytest.fixture(autouse=True)
def ptx(request):
    """With --ptx: launches are compiled and their PTX is executed; the list of keys."""
    if request.config.option.ptx is None:
        yield None
        return
    from tests.ptx.execute import executing

    with executing(request.config.option.ptx) as executed:
        yield executed


def pytest_configure(config):
    if config.option.ptx:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ.pop("TRITON_INTERPRET", None)
    elif not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before kernels are imported: decorators read it
    # the interpreter uses NumPy, which warns of overflow and 0/0 where a GPU computes silently
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")
    # Triton 3.6 converts arrays of one element to numbers, which NumPy has deprecated
    numbers = "ignore:Conversion of an array:DeprecationWarning:triton.runtime.interpreter"
    config.addinivalue_line("filterwarnings", numbers)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "compiled_kernels" not in item.name)  # the longest first


def pytest_report_header(config):
    if config.option.ptx:
        return f"kernels: compiled for sm_{config.option.ptx}, and the PTX executed on the CPU"
    if torch.cuda.is_available():
        return f"kernels: compiled on {torch.cuda.get_device_name()}"
    return "kernels: interpreted on the CPU (no GPU)"
