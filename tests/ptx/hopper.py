"""Copies of tiles by TMA, and the mbarriers that tell when they are there (sm_90 and newer).

A *tile* in shared memory consists of lines of W = 16, 32, 64 or 128 bytes, 8 lines in a block. They
are *swizzled*, so that equal columns of 8 lines lie in different banks: bits 4 to 6 of an address,
as far as W reaches, are xored with bits 7 to 9. For W = 128 the 16-byte chunks of line 1 stand in
the order 1 0 3 2 5 4 7 6, those of line 2 in the order 2 3 0 1 6 7 4 5.

TMA copies a box of a matrix that a *descriptor* gives: address, sizes, stride, box and W. It is
made in shared memory and published to global memory. What a box has outside the matrix is loaded as
0 and not stored. Loads land when somebody waits at their mbarrier; a phase of it ends when the
threads that `init` counts have arrived and the bytes that they expect have come. Stores read shared
memory when `wait_group` demands it: all happens as late as the program allows, so that a missing
wait shows.

TMA, like wgmma, does not see what threads have stored before a `fence.proxy.async`, either of the
writer or, behind a barrier, of the thread that starts it.
"""

from typing import NamedTuple

import numpy as np

from . import tensor_cores
from .arithmetic import BITS
from .memory import MANY, WARP, Fault
from .parser import Address

CHUNK = 16  # bytes that stay together
ELEMENT = {0: 1, 1: 2, 2: 4, 3: 4, 6: 2, 7: 4, 10: 2}  # elemtype -> bytes: 6 is fp16, 10 is bf16


class Tile(NamedTuple):
    """A box between global and shared memory."""

    lane: np.ndarray  # (elements,): the thread that copies
    group: int  # of a store: the number of groups that the thread had committed before
    address: np.ndarray  # (elements,) in global memory
    inside: np.ndarray  # (elements,): in the matrix
    places: np.ndarray  # (chunks,) in shared memory
    size: int  # bytes of an element


class Barrier:
    """An mbarrier in a phase."""

    def __init__(self, arrivals: int, phase: int = 0):
        self.arrivals = self.missing = arrivals
        self.phase, self.expected, self.tiles = phase, 0, []  # bytes, and who brings them

    def next(self, machine) -> "Barrier":
        """Let the tiles land and the phase end."""
        coming = CHUNK * sum(len(tile.places) for tile in self.tiles)
        if self.missing or coming != self.expected:
            what = f"{self.missing} more arrivals and {self.expected} bytes, of which {coming} come"
            raise Fault(f"waits for {what}")
        for lane, _, address, inside, places, size in self.tiles:
            values = np.zeros(len(lane), BITS[size])
            (values[inside],) = machine.memory.load(address[inside], size, 1, machine, lane[inside])
            lane = lane[: len(places)]
            machine.shared.land(places, list(values.reshape(len(places), -1).T), lane)
            landed = machine.shared.granules(places, CHUNK, lane)
            machine.shared.written[landed], machine.shared.writer[landed] = 0, MANY
        return Barrier(self.arrivals, self.phase + 1)


class State:
    """The asynchronous work of a machine."""

    def __init__(self, machine):
        self.edited: dict[tuple, dict] = {}  # (program, address) of a descriptor -> its fields
        self.descriptors: dict[int, dict] = {}  # global address -> its fields
        self.barriers: dict[tuple, Barrier] = {}  # (program, address)
        self.stores: list[Tile] = []
        self.products: list = []  # see wgmma.py
        self.groups = {"cp": np.zeros(machine.count, int), "wgmma": np.zeros(machine.count, int)}
        self.fence = np.zeros((2, machine.count), int)  # the last, and the last barrier before it
        self.fenced: dict[str, np.ndarray] = {}  # registers at the last wgmma.fence

    def finish(self) -> None:
        if self.stores or self.products or any(one.tiles for one in self.barriers.values()):
            raise Fault("the program ends before its asynchronous copies or products")


def _each(machine, *operands):
    """The numbers of the active threads, and of their operands."""
    lanes, found = machine.lane[machine.active], []
    for one in operands:
        if isinstance(one, Address):
            found.append(machine.address(one, 8).tolist())
        elif one[0] == "%":
            bits = machine.bits(one)[lanes]
            found.append(bits.view(f"i{bits.itemsize}").tolist())
        else:
            found.append([int(one, 0)] * len(lanes))
    return zip((lanes // machine.threads).tolist(), *found, strict=True)


def read(machine, address, size: int, lane) -> list[np.ndarray]:
    """Chunks of shared memory as arrays of numbers of `size` bytes, by the asynchronous proxy."""
    shared, (fence, barrier) = machine.shared, machine.hopper.fence
    values = shared.load(address, size, CHUNK // size, lane)
    at = shared.granules(address, CHUNK, lane)
    when, writer = shared.written[at], shared.writer[at]
    visible = (writer < 0) | (when < fence[writer.clip(0)]) | (when < barrier[lane, None])
    if (shared.unfenced[at] & ~visible).any():
        raise Fault("reads what threads have stored without a fence.proxy.async since")
    return values


def swizzled(address: np.ndarray, width: int) -> np.ndarray:
    """Where the bytes of a tile stand whose lines have `width` bytes."""
    return address ^ (address >> 3 & (width - CHUNK))


def fence(machine, one) -> None:
    """fence.proxy.async; fence.proxy.tensormap::generic.acquire.gpu [descriptor], 128"""
    if one.opcode[2] == "async":
        machine.shared.now += 1
        machine.hopper.fence[0, machine.active] = machine.shared.now
        machine.hopper.fence[1, machine.active] = machine.shared.barrier[machine.active]
    else:
        for _, address in _each(machine, one.operands[0]):
            machine.hopper.descriptors.get(address, {})["acquired"] = True


def elect(machine, one) -> None:
    """elect.sync lane|p, -1: p is true in one thread of each warp, here in the last"""
    machine.whole_warps()
    lane, p = one.operands[0]
    machine.write(lane, np.full(1, WARP - 1), "u32")
    machine.write(p, machine.lane % WARP == WARP - 1, "pred")


# --- TMA ------------------------------------------------------------------------------------------


def describe(machine, one) -> None:
    """tensormap.replace.tile.FIELD [at], (index,) value; tensormap.cp_fenceproxy [to], [at], 128"""
    state, lanes = machine.hopper, machine.lane[machine.active]
    at, *index, value = one.operands
    is_made = one.opcode[1] == "replace"
    source = machine.address(at if is_made else index[0], 128)
    if not is_made:  # .sync: Triton 3.6 has no barrier before it
        machine.warp_barrier(one)
    machine.shared.access(source, 128, lanes, is_write=False)
    if is_made:
        machine.shared.access(source, 128, lanes, is_write=True)
        for program, address, number in _each(machine, at, value):
            fields = state.edited.setdefault((program, address), {})
            fields[one.opcode[3] + "".join(index)] = number
    else:
        first = lanes % WARP == 0  # a warp copies once
        to, nothing = machine.address(at, 128)[first], np.zeros(first.sum(), np.uint64)
        machine.memory.store(to, [nothing] * 16, machine, lanes[first])
        for program, to, address in _each(machine, at, index[0]):
            state.descriptors[to] = dict(state.edited.get((program, address), {}))


def _tiles(machine, box: Address, place: Address):
    """The boxes that the active threads copy."""
    lanes = machine.lane[machine.active]
    boxes = _each(machine, box, place, *box.coordinates)
    for lane, (_, at, start, x, y) in zip(lanes, boxes, strict=True):
        given = machine.hopper.descriptors.get(at, {})
        if "acquired" not in given:
            raise Fault("uses a descriptor that no fence.proxy.tensormap has acquired")
        fields = "elemtype swizzle_mode global_address global_stride0x0 box_dim0x0 box_dim0x1"
        fields = f"{fields} global_dim0x0 global_dim0x1 rank element_stride0x0 element_stride0x1"
        if missing := set(fields.split()) - given.keys():
            raise Fault(f"uses a descriptor without {min(missing)}")
        kind, swizzle, matrix, stride, columns, rows, width, height = map(
            given.__getitem__, fields.split()[:8]
        )
        size, line = ELEMENT[kind], CHUNK << swizzle
        if (matrix | stride | columns * size) % CHUNK or (swizzle and columns * size > line):
            raise Fault(
                f"{columns} numbers of {size} bytes, {stride} from row to row of {matrix:#x}"
            )
        column, row = x + np.arange(columns), y + np.arange(rows)[:, None]
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        address = (matrix + row * stride + column * size).ravel()
        places = swizzled(start + np.arange(0, len(address) * size, CHUNK), line)
        lane = np.full(len(address), lane)
        group = machine.hopper.groups["cp"][lane[0]]
        yield Tile(lane, group, address, inside.ravel(), places, size)


def _count(machine, what: str, tile: Tile) -> None:
    address, lanes = tile.address[tile.inside], tile.lane[tile.inside]
    machine.count_access("global", what, address, tile.size, lanes)


def copy(machine, one) -> None:
    """cp.async.bulk.tensor.2d of [at] or [box], and their groups; otherwise as on sm_80"""
    state, shared = machine.hopper, machine.shared
    match one.opcode[2:]:
        case "bulk", "tensor", "2d", "global", *_:
            for tile in _tiles(machine, *one.operands):
                read(machine, tile.places, tile.size, tile.lane[: len(tile.places)])
                state.stores.append(tile)
        case "bulk", "tensor", "2d", *_:
            place, box, signal = one.operands
            lanes = machine.lane[machine.active]
            shared.access(machine.address(signal, 8), 8, lanes, is_write=False)
            for tile, at in zip(_tiles(machine, box, place), _each(machine, signal), strict=True):
                lane = tile.lane[: len(tile.places)]
                shared.access(tile.places, CHUNK, lane, is_write=True, is_copy=True)
                state.barriers[at].tiles.append(tile)
                _count(machine, "load", tile)
        case "bulk", "commit_group":
            state.groups["cp"][machine.active] += 1
        case "bulk", "wait_group", *_:
            due = np.where(machine.active, state.groups["cp"] - int(one.operands[0]), 0)
            done = [tile for tile in state.stores if tile.group < due[tile.lane[0]]]
            state.stores = [tile for tile in state.stores if tile.group >= due[tile.lane[0]]]
            for tile in done:
                lane, _, address, inside, places, size = tile
                values = np.stack(read(machine, places, size, lane[: len(places)]), 1).ravel()
                machine.memory.store(address[inside], [values[inside]], machine, lane[inside])
                _count(machine, "store", tile)
        case _:
            tensor_cores.copy(machine, one)


def barrier(machine, one) -> None:
    """mbarrier.init [at], count; .inval [at]; .arrive.expect_tx _, [at], bytes; .try_wait.parity p,
    [at], P: whether the phase with the number P modulo 2 has ended"""
    what, barriers, lanes = one.opcode[1], machine.hopper.barriers, machine.lane[machine.active]
    operands = one.operands[what in ("arrive", "try_wait") :]
    address = machine.address(operands[0], 8)
    if what in ("init", "inval"):
        machine.shared.store(address, [np.zeros(len(lanes), np.uint64)], lanes)
    else:
        machine.shared.access(address, 8, lanes, is_write=False)
    calls = list(_each(machine, *operands))
    for program, at, *number in set(calls) if what == "try_wait" else calls:
        key = program, at
        if (key in barriers) == (what == "init"):
            raise Fault(
                "needs an mbarrier that is not in use, or uses one that init has not set up"
            )
        match what:
            case "init":
                barriers[key] = Barrier(*number)
            case "inval":
                if barriers.pop(key).tiles:
                    raise Fault("ends an mbarrier before its copies have landed")
            case "arrive":
                if not barriers[key].missing:
                    barriers[key] = barriers[key].next(machine)
                barriers[key].missing -= 1
                barriers[key].expected += number[0]
            case "try_wait":
                if barriers[key].phase % 2 == number[0]:
                    barriers[key] = barriers[key].next(machine)
    if what == "try_wait":
        machine.write(one.operands[0], np.ones(1, bool), "pred")


HANDLERS = {
    "tensormap": describe, "cp": copy, "mbarrier": barrier, "elect": elect, "fence": fence,
}  # fmt: skip
