"""Global and shared memory of a launch, with the faults that a GPU lets pass, and counts.

Global memory is that of this process. An access outside the operands is a fault, and so is a byte
that two programs write, or that one writes and another reads: the result would depend on the order
of the programs. Threads of a program need a barrier between a write and a later read or write.

Shared memory belongs to a program. A byte must be written before it is read, and two accesses by
different threads, of which one is a write, must have a barrier between them, or `bar.warp.sync` if
both are in one warp. The bytes of a `cp.async` may not be read before it has landed.
"""

import ctypes

import numpy as np

from .arithmetic import BITS

WARP = 32
WORD, BANKS, SECTOR = 4, 32, 32  # bytes of a bank, banks of shared memory, bytes of a sector
FIRST, LAST = 4_096, 2**47 - 4_096  # addresses of a process
PROCESS = np.ndarray(LAST - FIRST, np.uint8, (ctypes.c_uint8 * (LAST - FIRST)).from_address(FIRST))
MANY = -(2**30)  # the reader of bytes that several warps have read


class Fault(Exception):
    """What an instruction did wrong, and by which of the accesses that it made."""

    def __init__(self, what: str, which: int = 0):
        super().__init__(what)
        self.what, self.which = what, which


class Unsupported(Exception):
    """An instruction that the executor does not know."""


def check(wrong: np.ndarray, what) -> None:
    """Raise a fault if any access is wrong; `what` is a text, or a function of its number."""
    if wrong.any():
        which = int(np.flatnonzero(wrong.reshape(len(wrong), -1).any(1))[0])
        raise Fault(what if isinstance(what, str) else what(which), which)


class GlobalMemory:
    """The memory that a launch may touch, as (first address, address after the last)."""

    def __init__(self, buffers: list[tuple[int, int]], granule: int):
        """granule: the fewest bytes that the kernel moves at a time."""
        spans: list[list[int]] = []
        for start, end in sorted(buffers):
            if spans and start <= spans[-1][1]:
                spans[-1][1] = max(end, spans[-1][1])
            else:
                spans.append([start, end])
        self.starts, self.ends = np.array(spans).T
        lengths = (self.ends - self.starts) // granule + 2
        self.granule, self.first = granule, np.cumsum(lengths) - lengths - self.starts // granule
        # by granule: the program + 1 and the thread that wrote it last, and when
        self.writer, self.thread, self.written = np.zeros((3, lengths.sum()), np.int32)
        self.reads: list[tuple[np.ndarray, np.ndarray]] = []  # granules and programs

    def load(self, address: np.ndarray, size: int, count: int, machine, lanes) -> list:
        """`count` arrays (accesses,) of numbers of `size` bytes that stand one after the other."""
        granules = self._granules(address, size * count)
        self._check_race(granules, machine, lanes, "reads")
        self.reads.append((granules, machine.program[lanes]))
        values, index = PROCESS.view(BITS[size]), (address - FIRST) // size
        return [values[index + i] for i in range(count)]

    def store(self, address: np.ndarray, values: list[np.ndarray], machine, lanes) -> None:
        size, owner = values[0].itemsize, machine.program[lanes][:, None] + 1
        granules = self._granules(address, size * len(values))
        self._check_race(granules, machine, lanes, "writes")
        before = self.writer[granules]
        self.writer[granules] = owner
        self.thread[granules], self.written[granules] = lanes[:, None], machine.shared.now
        other = np.where(before == 0, self.writer[granules], before)
        check(other != owner, lambda i: f"program {other[i].max() - 1} writes the same bytes")
        self._check_race(granules, machine, lanes, "writes")  # by this instruction
        for i, value in enumerate(values):
            PROCESS.view(BITS[size])[(address - FIRST) // size + i] = value

    def _check_race(self, granules, machine, lanes, what: str) -> None:
        """Raise if another thread of the program has written this since the last barrier."""
        mine = self.writer[granules] == machine.program[lanes][:, None] + 1
        other, barrier = self.thread[granules], machine.shared.barrier[lanes][:, None]
        racing = mine & (other != lanes[:, None]) & (self.written[granules] >= barrier)
        check(racing, f"{what} what another thread wrote without a barrier between them")

    def check_order(self) -> None:
        """Raise if a program has read what another one wrote."""
        for granules, program in self.reads:
            writer = self.writer[granules] - 1
            check(
                (writer >= 0) & (writer != program[:, None]),
                lambda i: f"program {program[i]} reads what {writer[i].max()} writes",  # noqa: B023
            )

    def _granules(self, address: np.ndarray, size: int) -> np.ndarray:
        """Numbers (accesses, n) of the granules of an access, which must be inside."""
        span = np.searchsorted(self.starts, address, "right") - 1
        outside = (span < 0) | (address + size > self.ends[span])
        check(outside, lambda i: f"{size} bytes at {address[i]:#x} are outside the operands")
        first = address // self.granule + self.first[span]
        return first[:, None] + np.arange(max(1, size // self.granule))


class SharedMemory:
    """The shared memory of several programs, side by side. Threads are numbered through.

    For each granule of bytes: which thread wrote it last, who has read it since, and when.
    """

    def __init__(self, programs: int, size: int, threads: int, granule: int):
        self.size, self.granule, self.threads = size + -size % 16, granule, threads
        self.bytes = np.zeros(programs * self.size, np.uint8)
        granules = len(self.bytes) // granule
        self.writer, self.reader = np.zeros((2, granules), np.int32)  # reader: or -1 - warp, MANY
        self.written, self.read = np.full((2, granules), -1)  # when; -1: never
        # a copy has not landed; what was stored is not visible to TMA and wgmma without a fence
        self.landing, self.unfenced = np.zeros((2, granules), bool)
        self.now = 0
        self.barrier, self.warp_barrier = np.zeros((2, programs * threads), np.int64)  # the last

    def synchronise(self, threads: np.ndarray, is_warp: bool) -> None:
        self.now += 1
        self.warp_barrier[threads] = self.now
        if not is_warp:
            self.barrier[threads] = self.now

    def load(self, address: np.ndarray, size: int, count: int, thread: np.ndarray) -> list:
        self.access(address, size * count, thread, is_write=False)
        values, index = self.bytes.view(BITS[size]), self.at(address, thread) // size
        return [values[index + i] for i in range(count)]

    def land(self, address: np.ndarray, values: list[np.ndarray], thread: np.ndarray) -> None:
        """Store what an asynchronous copy brings; it needs no fence (Triton 3.6 has none)."""
        at = self.granules(address, values[0].itemsize * len(values), thread)
        self.landing[at] = False
        self.store(address, values, thread)
        self.unfenced[at] = False

    def store(self, address: np.ndarray, values: list[np.ndarray], thread: np.ndarray) -> None:
        size = values[0].itemsize
        self.access(address, size * len(values), thread, is_write=True)
        memory, index = self.bytes.view(BITS[size]), self.at(address, thread) // size
        for i, value in enumerate(values):
            memory[index + i] = value
            # threads that hold copies of one value may all store it
            check(memory[index + i] != value, "writes what another thread writes, and differs")

    def at(self, address: np.ndarray, thread: np.ndarray) -> np.ndarray:
        """Positions in `bytes` of the addresses (accesses,) of threads."""
        return address + thread // self.threads * self.size

    def granules(self, address: np.ndarray, size: int, thread: np.ndarray) -> np.ndarray:
        outside = (address < 0) | (address + size > self.size)
        check(outside, lambda i: f"address {address[i]} is outside {self.size} bytes")
        first = self.at(address, thread)[:, None] // self.granule
        return first + np.arange(-(-size // self.granule))

    def access(self, address, size, thread, *, is_write, is_copy=False) -> None:
        """Check an access and remember it."""
        at, own = self.granules(address, size, thread), thread[:, None]
        barrier, written = self.barrier[own], self.written[at]
        check(self.landing[at], "touches the bytes of a cp.async before a wait_group for it")
        if not is_write:
            check(written < 0, "reads shared memory that nothing has written")
            self._check_race(self.writer[at], written, own, barrier, "reads what {} wrote")
            before = np.where(self.read[at] < barrier, own, self.reader[at])
            self.reader[at], self.read[at] = own, self.now
            for other in (before, self.reader[at]):  # who read before, and by this instruction
                if (several := other != own).any():
                    code = np.where(_warp(other) == own // WARP, -1 - own // WARP, MANY)
                    np.minimum.at(self.reader, at[several], code[several])  # MANY is the lowest
            return
        self._check_race(self.writer[at], written, own, barrier, "writes what {} wrote")
        self._check_race(self.reader[at], self.read[at], own, barrier, "writes what {} read")
        self.writer[at], self.written[at] = own, self.now
        self.landing[at], self.unfenced[at] = is_copy, True

    def _check_race(self, code, when, own, barrier, what: str) -> None:
        """Raise if an access by `code` at `when` is not ordered before one by the threads `own`."""
        racing = (when >= barrier) & (code != own)
        if racing.any():
            in_order = (_warp(code) == own // WARP) & (when < self.warp_barrier[own])

            def described(i):
                other = int(code[i][racing[i] & ~in_order[i]][0])
                who = f"thread {other % self.threads}" if other >= 0 else "other threads"
                return f"{what.format(who)} without a barrier between them"

            check(racing & ~in_order, described)


def _warp(code: np.ndarray) -> np.ndarray:
    """The warp of a thread, or that of the reader -1 - warp."""
    return np.where(code < 0, -1 - code, code // WARP)


# --- counts ---------------------------------------------------------------------------------------


def sectors(address: np.ndarray, thread: np.ndarray) -> int:
    """Number of sectors of 32 bytes that an instruction touches, summed over warps."""
    return _distinct(address[:, None] // SECTOR, thread // WARP).size


def conflicts(address: np.ndarray, size: int, thread: np.ndarray) -> int:
    """Number of extra turns of shared memory because words lie in the same bank.

    A turn serves 32 words: all threads of a warp, or with 8 or 16 bytes each a half or a quarter.
    """
    words = address[:, None] // WORD + np.arange(max(1, size // WORD))
    pairs = _distinct(words, thread * max(1, size // WORD) // WARP)
    turns, turn = np.unique(pairs >> 32, return_inverse=True)
    served = np.bincount(turn * BANKS + pairs % BANKS, minlength=len(turns) * BANKS)
    return int(served.reshape(-1, BANKS).max(1).sum()) - len(turns)


def _distinct(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The distinct pairs of a group and one of its values, as group * 2^32 + value % 2^32."""
    return np.unique((group[:, None].astype(np.int64) << 32) | (values & 0xFFFFFFFF))
