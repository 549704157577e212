"""The order of the programs of causal attention, by an event simulation of a quarter of an H200."""

import heapq

import pytest
import torch
import triton
import triton.language as tl

from kernels.common.launch import cdiv
from kernels.flash_attention.options import grouped
from kernels.flash_attention.scores import scheduled
from tests.operands import DEVICE

SLOTS = 33 * 4  # SMs, and programs that each runs at a time
TILE = 64  # rows and keys
START = 1.0  # of a program, in visits of a tile of keys


@triton.jit
def schedule_kernel(out_ptr, H):
    _, order, head, batch = scheduled(H)
    program = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    at = out_ptr + (program * tl.num_programs(0) + tl.program_id(0)) * 3
    tl.store(at, order)
    tl.store(at + 1, head.to(tl.int32))
    tl.store(at + 2, batch.to(tl.int32))


def schedule(B, H, T):
    """(tile, head, batch) of each program; the first tile visits the most keys."""
    heads = torch.empty((B, H, T, 64), dtype=torch.bfloat16, device="meta")
    tiles = cdiv(T, TILE)
    out = torch.empty(B * H * tiles, 3, dtype=torch.int32, device=DEVICE)
    schedule_kernel[grouped(heads, B * H, tiles)](out, H)
    return [tuple(row) for row in out.tolist()], tiles


def use(durations):
    """The fraction of the slots' time in which they run programs that start in this order."""
    free = [0.0] * SLOTS
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return sum(durations) / (SLOTS * max(free))


@pytest.mark.parametrize(
    ("B", "H", "T", "least", "by_heads"),
    [(16, 6, 256, 0.92, 0.79), (4, 12, 1024, 0.96, 0.86), (1, 12, 4096, 0.99, 0.88)],
)
def test_slots_are_busy_until_the_end(B, H, T, least, by_heads):
    """Longest first over many heads; longest first within each head in turn is worse."""
    programs, tiles = schedule(B, H, T)
    assert sorted(programs) == [(t, h, b) for t in range(tiles) for h in range(H) for b in range(B)]
    assert use([START + tiles - tile for tile, _, _ in programs]) >= least
    assert use([START + tiles - tile for _ in range(B * H) for tile in range(tiles)]) < by_heads


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
    heads = torch.empty((1, pairs, T, 64), dtype=torch.bfloat16, device="meta")
    assert grouped(heads, pairs, cdiv(T, TILE)) == expected
