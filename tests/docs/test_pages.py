"""The Python of the pages about the operations runs, top to bottom, as it stands there."""

import re

import pytest
import torch

from bench.results_file import REPOSITORY
from kernels import Ops
from kernels.norms.layer_norm import WIDEST

DOCS = REPOSITORY / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _as_it_was():
    """A page may choose a dtype and a seed for itself."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("page", ["library.md", "maths.md"])
def test_a_page_runs(page):
    blocks = BLOCK.findall((DOCS / page).read_text())
    assert blocks
    names = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


def test_every_operation_has_a_row_and_a_promise():
    limits, promise = (DOCS / "library.md").read_text().split("## The promise")
    without = {"decode_linear", "decode_attention", "sample_token"}  # they are for generating alone
    for operation in Ops._fields:
        assert f"`{operation}`" in limits
        assert (f"`{operation}`" in promise) == (operation not in without)


def test_the_widest_row_is_what_the_page_says():
    assert f"C up to {WIDEST:,}" in (DOCS / "library.md").read_text()
