"""Python runs this first, in every process of a rehearsal."""

import os
import sys

compiles = "--multiprocessing-fork" in sys.orig_argv  # without a GPU on a real machine either
os.environ["TRITON_INTERPRET"] = "0" if compiles else "1"

from tests.rehearsal import fake_gpu  # noqa: E402 (Triton reads the variable)

if not compiles:
    fake_gpu.install()
fake_gpu.shrink()
