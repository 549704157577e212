"""Matrix products with an epilogue per tile: the products of the feed-forward.

    activate     x = a @ b + bias,  hidden = f(x)              up:        a, b = x, w1^T
    derivative   dx = (a @ b) * f'(kept), sums of its columns  gradient:  a, b = dy, w2

Decisions:
- An epilogue saves a pass over memory, but no product runs meanwhile. Per tile of 128 x 256 on an
  H200, the pass of "activate" takes 7,000 cycles at the rate of a copy, the epilogue about 6,000
  for a GELU and 1,500 for a ReLU (instructions counted, not measured), and the product 980 for
  every 64 of K. `launch.ROUTES` lists the shapes for which the epilogue is used.
- From sm_90 on, one program per SM visits several tiles, which are loaded and stored through
  descriptors (TMA). `flatten` merges the loops over tiles and over K, so that the first operands of
  a tile are loaded during the epilogue of the previous one. Older GPUs, and tensors without a valid
  descriptor, use pointers and one program per tile.
- The epilogue processes half of the tile's columns at a time: kept and the result of a whole tile
  do not fit in shared memory next to three stages of operands.
- x is rounded before f is applied, so that backward differentiates f at the same point.
- A sum of columns covers one tile, so their number depends only on the shape.
"""

import torch
import triton
import triton.language as tl

from ..common.dtypes import triton_accumulator
from ..common.launch import cdiv, describable, launch, multiprocessors, tile
from .activation import FROM_HIDDEN, activate, derivative, empty_partial

INTERPRETED_PROGRAMS = 2  # without a GPU: few, so that each visits several tiles


@triton.jit
def gemm_kernel(
    a_ptr,  # (M, K)
    b_ptr,  # (N, K) if B_BY_ROWS, else (K, N)
    bias_ptr,  # (N,) or None
    kept_ptr,  # (M, N) for "derivative", else None
    out_ptr,  # (M, N)
    x_ptr,  # (M, N) or None for "activate"
    partial_ptr,  # (cdiv(M, BLOCK_M), N) for "derivative", else None
    M, N, K,
    B_BY_ROWS: tl.constexpr, EPILOGUE: tl.constexpr, DESCRIBED: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = BLOCK_N // 2
    a = _matrix(a_ptr, M, K, BLOCK_M, BLOCK_K, DESCRIBED)
    if B_BY_ROWS:
        b = _matrix(b_ptr, N, K, BLOCK_N, BLOCK_K, DESCRIBED)
    else:
        b = _matrix(b_ptr, K, N, BLOCK_K, BLOCK_N, DESCRIBED)
    out = _matrix(out_ptr, M, N, BLOCK_M, HALF, DESCRIBED)
    if x_ptr is not None:
        x_out = _matrix(x_ptr, M, N, BLOCK_M, HALF, DESCRIBED)
    if kept_ptr is not None:
        kept_in = _matrix(kept_ptr, M, N, BLOCK_M, HALF, DESCRIBED)

    # --- every tile, its columns first: the weights stay in L2 in any order ---
    across = tl.cdiv(N, BLOCK_N)
    tiles = tl.cdiv(M, BLOCK_M) * across
    for place in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=DESCRIBED):
        row, column = place // across * BLOCK_M, place % across * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        for k in range(0, K, BLOCK_K):
            left = _read(a, row, k, M, K, BLOCK_M, BLOCK_K, DESCRIBED)
            if B_BY_ROWS:
                right = _read(b, column, k, N, K, BLOCK_N, BLOCK_K, DESCRIBED).T
            else:
                right = _read(b, k, column, K, N, BLOCK_K, BLOCK_N, DESCRIBED)
            acc = tl.dot(left, right, acc, input_precision="ieee", out_dtype=ACC)

        # --- epilogue of each half of the columns ---
        halves = tl.split(acc.reshape(BLOCK_M, 2, HALF).permute(0, 2, 1))
        for half in tl.static_range(2):
            value = halves[half]
            first = column + half * HALF
            columns = first + tl.arange(0, HALF)
            if bias_ptr is not None:
                value += tl.load(bias_ptr + columns, columns < N, other=0.0).to(ACC)[None, :]
            if EPILOGUE == "activate":
                x = value.to(out_ptr.dtype.element_ty)
                if x_ptr is not None:
                    _write(x_out, x, row, first, M, N, DESCRIBED)
                value = activate(x.to(ACC), ACTIVATION)
            else:
                kept = _read(kept_in, row, first, M, N, BLOCK_M, HALF, DESCRIBED)
                value *= derivative(kept.to(ACC), ACTIVATION)
                partial = partial_ptr + (row // BLOCK_M).to(tl.int64) * N + columns
                tl.store(partial, tl.sum(value, 0), columns < N)
            _write(out, value.to(out_ptr.dtype.element_ty), row, first, M, N, DESCRIBED)


@triton.jit
def _matrix(ptr, M, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCRIBED: tl.constexpr):
    """A descriptor of the contiguous (M, N) at `ptr` with tiles (ROWS, COLUMNS), or `ptr`."""
    return tl.make_tensor_descriptor(ptr, [M, N], [N, 1], [ROWS, COLUMNS]) if DESCRIBED else ptr


@triton.jit
def _read(
    matrix,  # (M, N), by `_matrix`
    row, column, M, N,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """The tile (ROWS, COLUMNS) at (row, column), 0 outside of the matrix."""
    if DESCRIBED:
        value = matrix.load([row, column])
    else:
        offsets, inside = _places(row, column, M, N, ROWS, COLUMNS)
        value = tl.load(matrix + offsets, inside, other=0.0)
    return value


@triton.jit
def _write(matrix, value, row, column, M, N, DESCRIBED: tl.constexpr):
    """Store a tile at (row, column)."""
    if DESCRIBED:
        matrix.store([row, column], value)
    else:
        offsets, inside = _places(row, column, M, N, value.shape[0], value.shape[1])
        tl.store(matrix + offsets, value, inside)


@triton.jit
def _places(row, column, M, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The offsets of the elements of a tile, and whether they are in the matrix."""
    rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
    offsets = rows.to(tl.int64)[:, None] * N + columns[None, :]
    return offsets, (rows < M)[:, None] & (columns < N)[None, :]


def linear_activation(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """hidden = f(x @ weight^T + bias) (M, N), and its argument, or None if f' needs only hidden.

    x (M, K), weight (N, K), bias (N,) or None.
    """
    hidden = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    argument = None if activation in FROM_HIDDEN else torch.empty_like(hidden)
    _launch("activate", activation, x, weight, hidden, bias=bias, x=argument)
    return hidden, argument


def gradient_of_argument(
    dy: torch.Tensor, weight: torch.Tensor, kept: torch.Tensor, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx = (dy @ weight) * f'(kept) (M, N), and sums of its columns over row blocks (blocks, N).

    dy (M, K), weight (K, N), kept (M, N).
    """
    dx = torch.empty_like(kept)
    return dx, _launch("derivative", activation, dy, weight, dx, kept=kept)


def _launch(epilogue, activation, a, b, out, *, bias=None, kept=None, x=None):
    """Fill `out` and `x`; return the sums of columns of "derivative", else None."""
    (M, K), N = a.shape, out.shape[1]
    described = describable(a, b, out)
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages")
    kernel = "gemm_described" if described else "gemm" if a.element_size() == 2 else "gemm_fp32"
    constants = dict(zip(names, tile(kernel, a.device), strict=True))
    rows, columns = cdiv(M, constants["BLOCK_M"]), cdiv(N, constants["BLOCK_N"])
    partial = empty_partial(rows, out) if epilogue == "derivative" else None
    programs = rows * columns
    if described:
        programs = min(programs, _persistent_programs(a.device))
    constants |= {"B_BY_ROWS": epilogue != "derivative", "EPILOGUE": epilogue}
    constants["ACTIVATION"] = activation
    constants |= {"DESCRIBED": described, "ACC": triton_accumulator(a.dtype)}
    operands = a, b, bias, kept, out, x, partial, M, N, K
    launch(gemm_kernel, (programs,), *operands, **constants)
    return partial


def _persistent_programs(device):
    return multiprocessors(device) if device.type == "cuda" else INTERPRETED_PROGRAMS
