"""Operands of the tests: random values, and strategies for their shapes, dtypes and strides."""

import math

import torch
from hypothesis import strategies

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = (1, 2, 3, 7, 31, 33, 63, 64, 65, 127, 129, 257)  # around the powers of two


def randn(*shape, dtype=torch.float32, scale=1.0, shift=0.0, seed=0):
    """Normal numbers on `DEVICE`, generated on the CPU from `seed`, the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, dtype=torch.float64, generator=generator) * scale + shift
    return values.to(dtype).to(DEVICE)


def transposed(x):
    """The same values with the memory order of the dimensions reversed."""
    order = tuple(reversed(range(x.ndim)))
    return x.permute(order).contiguous().permute(order)


def stepped(x):
    """The same values, every second element of a wider buffer."""
    return torch.stack((x, x), dim=-1)[..., 0]


def offset(x):
    """The same values, contiguous, from the second element of a buffer: not 16-byte aligned."""
    return torch.cat((x.new_zeros(1), x.reshape(-1)))[1:].view(x.shape)


LAYOUTS = (torch.clone, transposed, stepped, offset)


def layouts():
    """Functions that change the strides of a tensor and keep its values."""
    return strategies.sampled_from(LAYOUTS)


def dtypes():
    return strategies.sampled_from(DTYPES)


def sizes(largest=SIZES[-1]):
    """Sizes up to `largest`, most of them at the edges of tiles."""
    edges = [size for size in SIZES if size <= largest]
    return strategies.one_of(strategies.sampled_from(edges), strategies.integers(1, largest))


def shapes(largest, dimensions=3):
    """Shapes (..., size) of one to `dimensions` dimensions with at most `largest` elements."""

    def limited(shape):
        return math.prod(shape) <= largest

    few = strategies.integers(1, 5)
    leading = strategies.lists(few, max_size=dimensions - 1).map(tuple)
    return strategies.tuples(leading, sizes()).map(lambda s: (*s[0], s[1])).filter(limited)
