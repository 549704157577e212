"""Installs the fake GPU in every process of a rehearsal, before anything else is imported."""

import os
import sys

compiles = sys.orig_argv[1:3] == ["-m", "bench.prove.compile"]  # needs no GPU, and no interpreter
os.environ["TRITON_INTERPRET"] = "0" if compiles else "1"

from tests.rehearsal import fake_gpu  # noqa: E402 (Triton reads the variable on import)

if not compiles:
    fake_gpu.install()
fake_gpu.shrink()
