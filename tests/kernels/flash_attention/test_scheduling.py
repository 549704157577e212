"""The order of the programs of causal attention, by an event simulation of a quarter of an H200."""

import heapq

import pytest
import torch
import triton
import triton.language as tl

from kernels.common.launch import cdiv
from kernels.flash_attention.options import together
from kernels.flash_attention.scores import scheduled
from tests.operands import DEVICE

SLOTS = 33 * 4  # SMs, and programs that each runs at a time
TILE = 64  # rows and keys
START = 1.0  # of a program, in visits of a tile of keys


@triton.jit
def schedule_kernel(out_ptr, tiles, H, together):
    order, head, batch = scheduled(tiles, H, together)
    at = out_ptr + tl.program_id(0) * 3
    tl.store(at, order)
    tl.store(at + 1, head.to(tl.int32))
    tl.store(at + 2, batch.to(tl.int32))


def schedule(B, H, T):
    """(tile, head, batch) of each program; the first tile visits the most keys."""
    tiles = cdiv(T, TILE)
    out = torch.empty(B * H * tiles, 3, dtype=torch.int32, device=DEVICE)
    heads = torch.empty((B, H, T, 64), dtype=torch.bfloat16, device="meta")
    schedule_kernel[(len(out),)](out, tiles, H, together(heads))
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


@pytest.mark.parametrize(("B", "H", "T", "expected"), [(64, 6, 256, 384), (1, 12, 8192, 6)])
def test_heads_that_run_together_fit_in_the_cache(B, H, T, expected):
    """In groups of one size: 12 heads of 2 MiB as 6 and 6, not 8 and 4."""
    assert together(torch.empty((B, H, T, 64), dtype=torch.bfloat16, device="meta")) == expected
