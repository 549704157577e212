"""Products with an epilogue: every epilogue, through pointers and through descriptors."""

import contextvars
from functools import partial

import pytest
import torch
import triton
from torch.nn.functional import linear

from kernels.common import launch
from kernels.matmul import gemm
from kernels.matmul.activation import FROM_HIDDEN, activation_forward
from kernels.torch_ops import ACTIVATIONS
from tests.numerics import assert_rounded_once, hold_against
from tests.operands import DEVICE, randn

ALIGNED = (129, 264, 72)  # rows are multiples of 16 bytes, so descriptors are used if supported
SHAPES = [(1, 1, 1), (31, 65, 33), ALIGNED]  # M, N, K; the last takes several tiles

# Each tile of `launch.TILES` once: fp32 has one for all families, sm_100 has those of sm_90.
FAMILIES = (80, 90, 120)
FAMILIES_AND_DTYPES = [(80, torch.float32), (90, torch.float16)]
FAMILIES_AND_DTYPES += [(family, torch.bfloat16) for family in FAMILIES]


def operands(M, N, K, dtype, epilogue="up"):
    """a (M, K), a weight (N, K), or (K, N) for "gradient", and a bias (N,)."""
    shape = (K, N) if epilogue == "gradient" else (N, K)
    a, b = randn(M, K, dtype=dtype, seed=1), randn(*shape, dtype=dtype, scale=K**-0.5, seed=2)
    return a, b, randn(N, dtype=dtype, seed=3)


on_families = pytest.mark.parametrize("family", FAMILIES)
on_families_and_dtypes = pytest.mark.parametrize(("family", "dtype"), FAMILIES_AND_DTYPES, ids=str)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@on_families_and_dtypes
def test_linear_activation(family, dtype, shape):
    def by_pytorch(x, weight, bias):
        pre = linear(x, weight, bias)
        return ACTIVATIONS["gelu"](pre), pre

    ours = partial(gemm.linear_activation, activation="gelu")
    with launch.target(family):
        hold_against(ours, by_pytorch, operands(*shape, dtype), backward=False, compute=dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@on_families
def test_the_saved_argument_is_that_of_the_activation(family, activation):
    """Bit for bit, so that backward differentiates f at the same point."""
    x, weight, _ = operands(*ALIGNED, torch.bfloat16)
    with launch.target(family):
        hidden, kept = gemm.linear_activation(x, weight, None, activation)
        _, pre = gemm.linear_activation(x, weight, None, "gelu")
    if activation in FROM_HIDDEN:
        assert kept is None  # hidden itself
    else:
        assert torch.equal(kept, pre)
    assert torch.equal(hidden, activation_forward(pre, activation))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@on_families_and_dtypes
def test_gradient_of_argument(family, dtype, shape):
    def by_pytorch(dy, weight, kept):
        x = kept.detach().requires_grad_()
        return torch.autograd.grad(ACTIVATIONS["gelu"](x), x, dy @ weight)[0]

    def ours(*inside):
        return gemm.gradient_of_argument(*inside, "gelu")

    dy, weight, _ = operands(*shape, dtype, "gradient")
    inside = dy, weight, randn(dy.shape[0], weight.shape[1], dtype=dtype, seed=4)
    options = {"backward": False, "compute": dtype}
    with launch.target(family):
        hold_against(lambda *x: ours(*x)[0], by_pytorch, inside, **options)
        sums = lambda *x: ours(*x)[1].sum(0), lambda *x: by_pytorch(*x).sum(0)
        hold_against(*sums, inside, **options, out_dtype=torch.float32)


@on_families
def test_descriptors_are_used_where_possible(family):
    """From sm_90 on, for 16-bit operands with rows and first elements at multiples of 16 bytes."""
    M, N, K = ALIGNED
    described = family >= 90

    def is_described(x, weight):
        with launch.record(family) as launches:
            gemm.linear_activation(x, weight, None, "gelu")
        return launches[0].options["DESCRIBED"]

    def empty(rows, columns, dtype=torch.bfloat16, first=0):
        buffer = torch.empty(first + rows * columns, dtype=dtype, device="meta")
        return buffer[first:].view(rows, columns)

    assert is_described(empty(M, K), empty(N, K)) == described
    assert is_described(empty(M, K, first=8), empty(N, K)) == described
    assert not is_described(empty(M, K, first=4), empty(N, K))
    assert not is_described(empty(M, K), empty(N, K, first=1))
    assert not is_described(empty(M, K + 1), empty(N, K + 1))
    assert not is_described(empty(M, K), empty(N + 4, K))  # the rows of the result
    assert not is_described(empty(M, K, torch.float32), empty(N, K, torch.float32))


@on_families
def test_a_program_visits_several_tiles(family):
    """Also in the interpreter, or the loop over tiles would be tested only on a GPU."""
    M, N, K = 390, 520, 16
    x, weight, bias = operands(M, N, K, torch.bfloat16)
    with launch.record(family) as launches:
        gemm.linear_activation(x, weight, bias, "relu")
    (one,) = launches
    BLOCK_M, BLOCK_N = one.options["BLOCK_M"], one.options["BLOCK_N"]
    tiles = -(-M // BLOCK_M) * -(-N // BLOCK_N)
    described = one.options["DESCRIBED"]
    programs = min(tiles, gemm._persistent_programs(x.device)) if described else tiles
    assert one.grid == (programs,)
    assert programs < tiles or DEVICE == "cuda" or not described
    with launch.target(family):
        hidden, _ = gemm.linear_activation(x, weight, bias, "relu")
    exact = linear(x.double(), weight.double(), bias.double()).relu()
    assert_rounded_once(hidden, exact, linear(x, weight, bias).relu())


def test_the_allocator_of_the_caller_is_kept():
    """Descriptors need `triton.set_allocator`, which the caller may use, too."""
    from triton.runtime import _allocation

    def theirs(size, alignment, stream):
        raise AssertionError("the allocator of the caller is used")

    def use():
        triton.set_allocator(theirs)
        x, weight, _ = operands(*ALIGNED, torch.bfloat16)
        with launch.target(90):
            gemm.linear_activation(x, weight, None, "gelu")
        return _allocation._allocator.get()

    assert contextvars.copy_context().run(use) is theirs
