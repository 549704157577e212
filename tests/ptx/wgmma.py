"""wgmma: products of 4 warps whose operands lie in shared memory (sm_90).

`wgmma.m64nNk16` computes D += A B. A is (64, 16), a tile or registers as in `mma`, 16 rows a warp;
B (16, N) is a tile; D is as in `mma`, 16 rows a warp, 4 registers for every 8 columns. The lines of
a tile (see `hopper`) run along k, or along m or n if it is *transposed*. A number of 64 bits
describes it: its start, the *leading* offset from W bytes of a line to the next W, the *stride*
from 8 lines to the next 8, each in units of 16 bytes, and W.

Products are computed at `wait_group`: D is undefined until then, and A and B are read then.
Sums are rounded as `tensor_cores` says, with its bound.
"""

from typing import NamedTuple

import numpy as np

from . import tensor_cores
from .arithmetic import as_type
from .hopper import CHUNK, read, swizzled
from .memory import WARP, Fault, Unsupported

GROUP = 128  # threads of a product


class Product(NamedTuple):
    """A wgmma in flight."""

    instruction: tuple
    threads: np.ndarray  # (threads,): who started it
    group: np.ndarray  # (threads,), as in Tile
    tiles: list[np.ndarray]  # (threads,): the descriptors of B, or of A and B
    accumulates: np.ndarray  # (threads,)


def handle(machine, one) -> None:
    """wgmma.mma_async.sync.aligned.m64nNk16.f32.X.X D, A, B, whether to add D, signs, transposed;
    wgmma.fence; .commit_group; .wait_group N"""
    state, active = machine.hopper, machine.active
    match one.opcode[1]:
        case "fence":
            state.fenced = dict(machine.registers)
        case "commit_group":
            state.groups["wgmma"][active] += 1
        case "wait_group":
            _finish(machine, state.groups["wgmma"] - int(one.operands[0]))
        case "mma_async":
            _start(machine, one)


def _start(machine, one) -> None:
    state, active, undefined = machine.hopper, machine.active, machine.undefined
    target, *operands, adds = one.operands[:4]
    if one.opcode[5] != "f32" or "-1" in one.operands[4:6]:
        raise Unsupported(one.text)
    if (active != active.reshape(-1, GROUP).all(1).repeat(GROUP)).any():
        raise Fault(f"needs all {GROUP} threads of 4 warps")
    adds = np.broadcast_to(machine.read(adds, "pred"), machine.count)
    tiles = [machine.bits(name).astype(int) for name in operands if isinstance(name, str)]
    before = [one.threads for one in state.products if one.instruction.operands[0] == target]
    nobody = machine.lane < 0
    machine.active = active & adds & ~np.any([nobody, *before], 0)
    used = [*(target if machine.active.any() else ()), *(operands[0] if len(tiles) == 1 else ())]
    for name in used:
        if machine.bits(name) is not state.fenced.get(name):
            raise Fault(f"{name} was set after the last wgmma.fence")
    machine.active = active
    for name in target:
        if name not in machine.registers:
            machine.registers[name] = np.zeros(machine.count, np.uint32)
            undefined[name] = ~nobody
        undefined[name] = undefined.get(name, nobody) | active
    state.products.append(Product(one, active, state.groups["wgmma"].copy(), tiles, adds))
    _factors(machine, state.products[-1], active, warps=4)


def _finish(machine, due: np.ndarray) -> None:
    """Compute the products of groups before `due` (threads,)."""
    state, started = machine.hopper, machine.hopper.products
    done = [one.threads & machine.active & (one.group < due) for one in started]
    for one, threads in zip(started, done, strict=True):
        if threads.any():
            _multiply(machine, one, threads)
    for one, threads in zip(started, done, strict=True):
        for name in one.instruction.operands[0]:
            machine.undefined[name] &= ~threads
    rest = [one.threads & ~threads for one, threads in zip(started, done, strict=True)]
    pairs = zip(started, rest, strict=True)
    state.products = [one._replace(threads=some) for one, some in pairs if some.any()]
    for one in state.products:
        for name in one.instruction.operands[0]:
            machine.undefined[name] |= one.threads


def _multiply(machine, product: Product, threads: np.ndarray) -> None:
    names, first = product.instruction.operands[0], np.flatnonzero(threads)[::GROUP]
    if not all(machine.undefined[name][threads].all() for name in names):
        raise Fault("D was set before wait_group")
    a, b = _factors(machine, product, threads, warps=1)
    c = np.stack([machine.registers[name][threads] for name in names]).view(np.float32)
    # registers (8 columns, row half, neighbour), threads (groups, warp, row, pair)
    c = c.reshape(-1, 2, 2, len(first), 4, 8, 4).transpose(3, 4, 1, 5, 0, 6, 2)
    c = np.where(product.accumulates[first, None, None], c.reshape(len(first), 64, -1), 0)
    d = (a @ b + c).astype(np.float32)
    d = d.reshape(len(first), 4, 2, 8, -1, 4, 2).transpose(4, 2, 6, 0, 1, 3, 5)
    for name, value in zip(names, d.reshape(len(names), -1), strict=True):
        bits = machine.registers[name].copy()
        bits[threads] = value.view(np.uint32)
        machine.registers[name] = machine.hopper.fenced[name] = bits
    if machine.counts is not None:
        machine.counts["tensor-core FLOPs"] += 2 * 16 * d.size


def _factors(machine, product: Product, threads: np.ndarray, warps: int) -> list[np.ndarray]:
    """A (groups, 64, 16) and B (groups, 16, N) in fp64, as the first `warps` warps read them."""
    _, a, _, _, _, _, *transposed = product.instruction.operands
    shape, _, type_ = product.instruction.opcode[4:7]
    first, found = np.flatnonzero(threads)[::GROUP], []
    if len(product.tiles) == 1:
        a = tensor_cores.left(machine, a, f"{type_}x2")
        found.append(a.reshape(-1, 64, 16)[first // GROUP])
    lanes = first[:, None] + WARP * np.arange(warps)
    sizes = [64, int(shape[4:].partition("k")[0])][-len(product.tiles) :]
    for tile, size, is_transposed in zip(product.tiles, sizes, transposed, strict=True):
        address = _chunks(tile[first], size, is_transposed == "1")
        each = np.repeat(address.reshape(len(first), -1), warps, 0)
        numbers = np.stack(read(machine, each.ravel(), 2, lanes.repeat(each.shape[1])), 1)
        numbers = as_type(numbers, type_).reshape(len(first), warps, *address.shape[1:], 8)[:, 0]
        matrix = numbers.reshape(*address.shape[:2], -1).astype(np.float64)
        # lines along k: (m or n, k); transposed: (k, m or n)
        is_a, along_k = len(found) < 1, is_transposed == "0"
        found.append(matrix if is_a == along_k else matrix.swapaxes(1, 2))
    return found


def _chunks(tile: np.ndarray, size: int, is_transposed: bool) -> np.ndarray:
    """Descriptors -> the addresses (groups, lines, chunks) of a tile of `size` rows or columns."""
    start, leading, stride = ((tile >> bit & 0x3FFF)[:, None, None] * CHUNK for bit in (0, 16, 32))
    width = (16, 128, 64, 32)[tile[0] >> 62 & 3]
    if is_transposed and width == CHUNK:
        leading, stride = stride, leading
    lines, chunks = (16, size // 8) if is_transposed else (size, 2)
    line, byte = np.arange(lines)[:, None], np.arange(chunks) * CHUNK
    place = line % 8 * width + line // 8 * stride + byte % width + byte // width * leading
    return swizzled(start + place, width)
