"""Matrix products of a warp, and the instructions that bring their operands into place.

The 32 threads of a warp hold a matrix together, a *fragment* each. `mma.sync.m16n8k16` computes
D = A B + C for A (16, 16), B (16, 8) and C (16, 8). Thread 4 group + pair holds two neighbours in
each 32-bit register of A and B, and one number in each of C:

    A   register 0: row group,      columns 2 pair and 2 pair + 1
        register 1: row group + 8,  the same columns
        registers 2 and 3: the same rows, columns 2 pair + 8 and 2 pair + 9
    B   register 0: column group,   rows 2 pair and 2 pair + 1
        register 1: column group,   rows 2 pair + 8 and 2 pair + 9
    C   registers 0 and 1: row group, columns 2 pair and 2 pair + 1
        registers 2 and 3: row group + 8, the same columns

So an array (registers, warps, group, pair, neighbours) of all registers holds the matrices with
their dimensions in another order, and a transposition puts them in place.

Products of 16-bit numbers are exact in fp32. A GPU adds the 16 products and C in an order and with
a precision that NVIDIA does not define; here they are added in fp64 and rounded once. The results
differ by at most 17 2^-23 (|C| + sum |A| |B|).
"""

from typing import NamedTuple

import numpy as np

from .arithmetic import as_type
from .memory import WARP, Unsupported


def fragments(machine, names, type_: str) -> np.ndarray:
    """Registers of all threads in fp64, (names, warps, group, pair, neighbours)."""
    bits = np.stack([machine.bits(name) for name in names])
    numbers = as_type(bits.ravel(), type_).astype(np.float64)
    return numbers.reshape(len(names), -1, 8, 4, 2 if "x2" in type_ else 1)


def left(machine, names, type_: str) -> np.ndarray:
    """A of every warp, (warps, 16, 16)."""
    a = fragments(machine, names, type_).reshape(2, 2, -1, 8, 4, 2)  # (column / 8, row / 8, ...)
    return a.transpose(2, 1, 3, 0, 4, 5).reshape(-1, 16, 16)


def multiply(machine, one) -> None:
    """mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 D, A, B, C, or f16."""
    if one.opcode[3:6] != ("m16n8k16", "row", "col") or one.opcode[6] != "f32":
        raise Unsupported(one.text)
    machine.whole_warps()

    (target, a, b, c), pairs = one.operands, f"{one.opcode[7]}x2"
    a, b = left(machine, a, pairs), fragments(machine, b, pairs)
    b = b.transpose(1, 0, 3, 4, 2).reshape(-1, 16, 8)  # from (row / 8, warps, column, pair, 2)
    c = fragments(machine, c, "f32").reshape(2, 2, -1, 8, 4)  # (row / 8, 2, warps, group, pair)
    c = c.transpose(2, 0, 3, 4, 1).reshape(-1, 16, 8)
    d = (a @ b + c).astype(np.float32).reshape(-1, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3)
    for name, value in zip(target, d.reshape(4, -1), strict=True):
        machine.write(name, value, "f32")
    if machine.counts is not None:
        machine.counts["tensor-core FLOPs"] += 2 * 16 * 8 * 16 * machine.warps


def rows(machine, at, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The threads that point to rows of `count` matrices (8, 8) per warp, and their addresses.

    Threads 0 to 7 of a warp point to the rows of the first matrix, 8 to 15 to those of the second.
    """
    lanes = (machine.whole_warps()[:, None] * WARP + np.arange(8 * count)).ravel()
    return lanes, machine.spread(machine.address(at, 16))[lanes]


def load_matrices(machine, one) -> None:
    """ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16: four matrices (8, 8) of 16-bit numbers.

    Each fills a register: thread 4 group + pair receives elements 2 pair and 2 pair + 1 of row
    `group`, or with .trans of column `group`.
    """
    targets, at = one.operands
    lanes, address = rows(machine, at, len(targets))
    machine.count_access("shared", "load", address, 16, lanes)
    elements = np.stack(machine.shared.load(address, 2, 8, lanes), 1)
    matrices = elements.reshape(-1, len(targets), 8, 8)  # (warps, matrices, rows, columns)
    if "trans" in one.opcode:
        matrices = matrices.swapaxes(2, 3)
    for i, name in enumerate(targets):
        pairs = np.ascontiguousarray(matrices[:, i]).view(np.uint32)
        machine.write(name, machine.spread(pairs.ravel()), "b32")


def store_matrices(machine, one) -> None:
    """stmatrix.sync.aligned.m8n8.x4(.trans).shared.b16, the reverse of ldmatrix."""
    at, sources = one.operands
    lanes, address = rows(machine, at, len(sources))
    machine.count_access("shared", "store", address, 16, lanes)
    pairs = [machine.bits(name)[machine.active].reshape(-1, WARP) for name in sources]
    matrices = np.stack(pairs, 1).view(np.uint16).reshape(-1, 8, 8)
    matrices = matrices.swapaxes(1, 2) if "trans" in one.opcode else matrices
    columns = matrices.reshape(-1, 8).T
    machine.shared.store(address, list(np.ascontiguousarray(columns)), lanes)


# --- asynchronous copies --------------------------------------------------------------------------


class Copy(NamedTuple):
    """Copies from global to shared memory that have not landed."""

    lanes: np.ndarray  # (copies,)
    address: np.ndarray  # (copies,)
    values: np.ndarray  # (copies, bytes)
    group: np.ndarray  # (copies,): the number of groups that the thread had committed before


def copy(machine, one) -> None:
    """cp.async.cg.shared.global [to], [from], size, bytes; .commit_group; .wait_group N

    With 0 bytes to read, zeros are written. A copy lands when a wait demands it, not earlier.
    """
    kind, lanes = one.opcode[2], machine.lane[machine.active]
    if kind == "commit_group":
        machine.groups[lanes] += 1
    elif kind == "wait_group":
        _land(machine, machine.groups - int(one.operands[0]))
    elif kind in ("ca", "cg"):
        to, source, size = one.operands[0], one.operands[1], int(one.operands[2], 0)
        count = machine.read_all(one.operands[3], "u32")[lanes] if one.operands[3:] else size
        reads = np.broadcast_to(count, lanes.shape) == size
        if not (reads | (count == 0)).all():
            raise Unsupported(f"{one.text} of a part of {size} bytes")
        values, address = np.zeros((len(lanes), size), np.uint8), machine.address(source, size)
        if reads.any():
            machine.count_access("global", "load", address[reads], size, lanes[reads])
            read = machine.memory.load(address[reads], 1, size, machine, lanes[reads])
            values[reads] = np.stack(read, 1)
        address = machine.address(to, size)
        machine.count_access("shared", "store", address, size, lanes)
        machine.shared.access(address, size, lanes, is_write=True, is_copy=True)
        machine.copies.append(Copy(lanes, address, values, machine.groups[lanes]))
    else:
        raise Unsupported(one.text)


def _land(machine, complete: np.ndarray) -> None:
    """Write the copies of the active threads whose group is below `complete` (threads,)."""
    copies, machine.copies = machine.copies, []
    for one in copies:
        lands = machine.active[one.lanes] & (one.group < complete[one.lanes])
        if lands.any():
            columns = list(np.ascontiguousarray(one.values[lands].T))
            machine.shared.land(one.address[lands], columns, one.lanes[lands])
        if not lands.all():
            machine.copies.append(Copy(*(field[~lands] for field in one)))
