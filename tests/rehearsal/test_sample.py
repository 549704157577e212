"""The tests that a rehearsal of `make prove` runs instead of all."""

import pytest
import torch

from kernels.triton_ops import OPS
from tests.operands import DEVICE


@pytest.mark.parametrize("rows", range(1, 9))
def test_layer_norm_equals_torch(rows):
    x = torch.randn(rows, 24, device=DEVICE)
    weight, bias = torch.randn(2, 24, device=DEVICE)
    expected = torch.nn.functional.layer_norm(x, (24,), weight, bias)
    torch.testing.assert_close(OPS.layer_norm(x, weight, bias), expected, rtol=1e-4, atol=1e-5)
