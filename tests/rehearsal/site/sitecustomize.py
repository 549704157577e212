"""Installs the fake GPU in every process of a rehearsal, before anything else is imported."""

import os

# kernels are compiled ahead without a GPU and without the interpreter
compiles = os.environ.setdefault("TRITON_INTERPRET", "1") == "0"

from tests.rehearsal import fake_gpu  # noqa: E402 (Triton reads the variable on import)

if not compiles:
    fake_gpu.install()
fake_gpu.shrink()
