"""The order of the programs of causal attention, in which the first tiles visit the most keys."""

import itertools

import pytest
import torch
import triton
import triton.language as tl

from kernels.common.launch import cdiv
from kernels.flash_attention.options import grouped
from kernels.flash_attention.scores import scheduled
from tests.operands import DEVICE

TILE = 64  # rows and keys


def grid(pairs, T):
    heads = torch.empty((1, pairs, T, 64), dtype=torch.bfloat16, device="meta")
    return grouped(heads, pairs, cdiv(T, TILE))


@triton.jit
def schedule_kernel(out_ptr, H):
    _, order, head, batch = scheduled(H)
    program = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    at = out_ptr + (program * tl.num_programs(0) + tl.program_id(0)) * 3
    tl.store(at, order)
    tl.store(at + 1, head.to(tl.int32))
    tl.store(at + 2, batch.to(tl.int32))


@pytest.mark.parametrize(("B", "H", "T"), [(16, 6, 256), (1, 12, 8192)])
def test_the_longest_programs_of_a_group_run_first(B, H, T):
    """So that the SMs are busy until the end; every tile of each head and batch runs once."""
    pairs, tiles, groups = grid(B * H, T)
    out = torch.empty(B * H * tiles, 3, dtype=torch.int32, device=DEVICE)
    schedule_kernel[pairs, tiles, groups](out, H)
    every = itertools.product(range(tiles), range(H), range(B))
    assert sorted(out.tolist()) == list(map(list, every))
    assert out[:, 0].tolist() == groups * [tile for tile in range(tiles) for _ in range(pairs)]


@pytest.mark.parametrize(
    ("pairs", "T", "expected"),
    [
        (384, 256, (384, 4, 1)),
        (12, 8192, (6, 128, 2)),
        (65_537, 8192, (65_537, 128, 1)),
        (0, 9, (0, 1, 1)),
    ],
)
def test_heads_of_a_group_fit_in_the_cache(pairs, T, expected):
    """Unless there would be too many groups: a grid has at most 65,535 in one direction."""
    assert grid(pairs, T) == expected
