"""Executes a compiled kernel on NumPy: one lane per thread, several programs of the grid at once.

Threads that stand at the same block execute it together. Among several blocks the one with the
lowest number goes first, so threads that have parted meet again behind a branch or a loop. At
`bar.sync` a thread waits until all threads of its program have come to the same one. A register is
an array with the bits of all threads.
"""

from collections import Counter

import numpy as np

from . import arithmetic, hopper, memory, tensor_cores, wgmma
from .arithmetic import BITS, as_bits, as_type, immediate, size_of
from .memory import WARP, Fault, GlobalMemory, SharedMemory, Unsupported, check
from .parser import Address, Instruction, Kernel

BARRIER = ("bar", "sync")
MOST_TURNS = 10_000  # of a block: more are an endless loop


class Machine:
    """Some programs of a grid, from their start to their end."""

    def __init__(self, kernel: Kernel, grid, programs, parameters, global_memory, shared, counts):
        """programs: numbers in the grid. parameters: name -> bits. shared: bytes of shared memory.

        counts: None, or a Counter of each opcode's instructions, one for every warp, and of what
        `count_access` and `tensor_cores` count.
        """
        self.kernel, self.parameters, self.counts = kernel, parameters, counts
        self.threads, self.count = kernel.threads, len(programs) * kernel.threads
        self.lane = np.arange(self.count)
        self.program = np.repeat(np.asarray(programs), self.threads)
        self.memory: GlobalMemory = global_memory
        granule = fewest_bytes(kernel, "shared")
        self.shared = SharedMemory(len(programs), shared, self.threads, granule)
        registers = {"%tid.x": self.lane % self.threads, "global_smem": 0 * self.lane}
        x, y, _ = grid
        place = self.program % x, self.program // x % y, self.program // (x * y)
        for axis, size, at in zip("xyz", grid, place, strict=True):
            registers |= {f"%ctaid.{axis}": at, f"%nctaid.{axis}": np.full(self.count, size)}
        self.registers = {name: bits.astype(np.uint32) for name, bits in registers.items()}
        self.undefined: dict[str, np.ndarray] = {}  # register -> the threads that have not set it
        self.copies: list[tensor_cores.Copy] = []  # by cp.async, not landed
        self.groups = np.zeros(self.count, np.int64)  # of copies that each thread has committed
        self.hopper = hopper.State(self)
        opcodes = {one.opcode for block in kernel.blocks for one in block}
        self.beside = np.full(self.count, ("griddepcontrol", "launch_dependents") in opcodes)

    def run(self) -> None:
        ready = {0: np.ones(self.count, bool)}  # block -> the threads that stand there
        waiting: dict[int, np.ndarray] = {}  # block that ends in a barrier -> those that wait
        turns: Counter[int] = Counter()
        while ready:
            index = min(ready)
            active = ready.pop(index)
            turns[index] += 1
            for target, threads in self.execute(index, active):
                if target is None:  # a barrier
                    arrived = waiting.get(index, False) | threads
                    whole = np.repeat(arrived.reshape(-1, self.threads).all(1), self.threads)
                    waiting[index], target, threads = arrived & ~whole, index + 1, whole
                    self.shared.synchronise(whole, is_warp=False)
                if threads.any():
                    ready[target] = ready.get(target, False) | threads
            if turns[index] > MOST_TURNS:
                self.fail(Fault(f"a loop has not ended after {MOST_TURNS:,} turns"))
        for index, threads in waiting.items():
            if threads.any():
                self.instruction, self.active = self.kernel.blocks[index][-1], threads
                here = self.program == self.program[np.flatnonzero(threads)[0]]
                self.fail(
                    Fault(f"{(threads & here).sum()} threads wait for others that never come")
                )
        self.hopper.finish()

    def execute(self, index: int, active: np.ndarray):
        """Execute a block for some threads; yield where they go, as (block or None, threads).

        None stands for the barrier at the end of the block.
        """
        everyone = bool(active.all())
        self.warps = int(active.reshape(-1, WARP).any(1).sum())
        for one in self.kernel.blocks[index]:
            self.instruction, name = one, one.opcode[0]
            self.active, self.all_active = active, everyone
            if self.counts is not None:
                self.counts[one.opcode] += self.warps
            try:
                if one.predicate:
                    self.active = active & (self.bits(one.predicate) != one.negated)
                    self.all_active = bool(self.active.all())
                if name in ("bra", "ret"):
                    active = active & ~self.active
                elif one.opcode[:2] != BARRIER and (self.all_active or self.active.any()):
                    _HANDLERS.get(name, Machine.compute)(self, one)
            except Fault as fault:
                self.fail(fault)
            if name == "bra":
                yield self.kernel.labels.get(one.operands[0], one.operands[0]), self.active
        yield None if one.opcode[:2] == BARRIER else index + 1, active

    def fail(self, fault: Fault) -> None:
        """Raise a fault with its program, thread and place."""
        one, lanes = self.instruction, np.flatnonzero(self.active)
        lane = lanes[min(fault.which, len(lanes) - 1)]
        raise Fault(
            f"{one.opcode[0]}: {fault.what} (program {self.program[lane]}, thread "
            f"{lane % self.threads}; {one.place}; line {one.line} of the PTX: {one.text})"
        ) from fault

    # --- registers --------------------------------------------------------------------------------

    def bits(self, name: str, *, is_used: bool = True) -> np.ndarray:
        """is_used: not only to compute another register, which is then as undefined as this one."""
        if name not in self.registers:
            raise Fault(f"reads {name}, which nothing has set")
        if is_used and name in self.undefined:
            check(self.undefined[name][self.active], f"reads {name}, which this thread has not set")
        return self.registers[name]

    def undefined_in(self, *names) -> np.ndarray | None:
        """The active threads in which one of the registers is not set; None without looking."""
        masks = [self.undefined[name] for name in names if name in self.undefined]
        return np.any(masks, 0) & self.active if masks else None

    def read(self, name: str, type_: str, *, is_used: bool = True) -> np.ndarray:
        """A register or a constant as numbers: (threads,) or (1,)."""
        if name[0] == "%" or name in self.registers:
            return as_type(self.bits(name, is_used=is_used), type_)
        return as_type(immediate(name, type_), type_)

    def read_all(self, name: str, type_: str) -> np.ndarray:
        """The same, always (threads,)."""
        return np.broadcast_to(self.read(name, type_), self.count)

    def write(self, name: str, value: np.ndarray, type_: str, undefined=None) -> None:
        """Set a register of the active threads to numbers (threads,), (1,), or packed pairs.

        undefined: the threads in which the value comes from registers that are not set.
        """
        if name == "_":
            return
        bits = as_bits(value, type_, size_of(self.kernel.type_of(name)))
        if len(bits) != self.count:
            bits = np.repeat(bits, self.count)
        if self.all_active:
            self.undefined.pop(name, None)
        else:
            before = self.registers.get(name)
            unset = self.undefined.get(name) if before is not None else self.lane >= 0
            if unset is not None:
                self.undefined[name] = unset & ~self.active
            bits = np.where(self.active, bits, 0 if before is None else before).astype(bits.dtype)
        if undefined is not None and undefined.any():
            self.undefined[name] = self.undefined.get(name, False) | undefined
        self.registers[name] = bits

    def compute(self, one: Instruction) -> None:
        """An instruction from registers to a register."""
        found = arithmetic.operation(one.opcode)
        if found is None:
            raise Unsupported(one.text)
        (function, types, result), (target, *sources) = found, one.operands
        pairs, undefined = zip(sources, types, strict=False), self.undefined_in(*sources)
        value = function(*[self.read(*pair, is_used=False) for pair in pairs])
        if isinstance(target, tuple):  # setp of packed pairs, %p|%q
            for name, half in zip(target, value.reshape(-1, 2).T, strict=True):
                self.write(name, half, result, undefined)
        else:
            self.write(target, value, result, undefined)

    def move(self, one: Instruction) -> None:
        """mov of a register or constant, or between a register and its two halves."""
        (target, source), type_ = one.operands, one.opcode[-1]
        size = size_of(type_)
        if isinstance(target, tuple):
            halves = self.bits(source).view(BITS[size // 2])
            for i, name in enumerate(target):
                self.write(name, halves[i::2], f"b{4 * size}")
        elif isinstance(source, tuple):
            half, nothing = f"b{4 * size}", np.full(self.count, -1).astype(BITS[size // 2])
            # LLVM packs halves that nothing sets or uses; they become NaN
            unset = [name[0] == "%" and name not in self.registers for name in source]
            halves = [
                nothing if none else self.read_all(name, half)
                for name, none in zip(source, unset, strict=True)
            ]
            self.write(target, np.stack(halves, 1).ravel().view(BITS[size]), type_)
        else:
            self.compute(one)

    # --- memory -----------------------------------------------------------------------------------

    def address(self, at: Address, size: int) -> np.ndarray:
        """The addresses of the active threads, multiples of `size`."""
        found = self.bits(at.base)[self.active].astype(np.int64) + at.offset
        misaligned = np.flatnonzero(found % size)
        if len(misaligned):
            what = f"address {found[misaligned[0]]:#x} is not a multiple of {size}"
            raise Fault(what, int(misaligned[0]))
        return found

    def load(self, one: Instruction) -> None:
        """ld.global, ld.shared and ld.param, of one or several registers."""
        space, type_ = one.opcode[1].partition("::")[0], one.opcode[-1]
        targets, at = one.operands[:2]
        targets, size = targets if isinstance(targets, tuple) else (targets,), size_of(type_)
        if space == "param":
            bits = np.array([self.parameters[at.base]]).view(BITS[size])[:1]
            return self.write(targets[0], as_type(bits, type_), type_)
        address, lanes = self.address(at, size * len(targets)), self.lane[self.active]
        self.count_access(space, "load", address, size * len(targets), lanes)
        if space == "global":
            values = self.memory.load(address, size, len(targets), self, lanes)
        else:
            values = self.shared.load(address, size, len(targets), lanes)
        for name, value in zip(targets, values, strict=True):
            self.write(name, self.spread(value), f"b{8 * size}")

    def spread(self, value: np.ndarray) -> np.ndarray:
        """Values of the active threads as an array (threads,)."""
        everyone = np.zeros(self.count, value.dtype)
        everyone[self.active] = value
        return everyone

    def store(self, one: Instruction) -> None:
        """st.global and st.shared, of one or several registers."""
        space, size = one.opcode[1].partition("::")[0], size_of(one.opcode[-1])
        at, sources = one.operands[:2]
        sources = sources if isinstance(sources, tuple) else (sources,)
        lanes = self.lane[self.active]
        values = [self.read_all(name, f"b{8 * size}")[lanes] for name in sources]
        address = self.address(at, size * len(values))
        self.count_access(space, "store", address, size * len(values), lanes)
        if space == "global":
            check(self.beside[lanes], "stores while the previous kernel may still be running")
            self.memory.store(address, values, self, lanes)
        else:
            self.shared.store(address, values, lanes)

    def count_access(self, space: str, what: str, address, size: int, lanes: np.ndarray) -> None:
        if self.counts is not None and space == "global":
            self.counts[f"{what} sectors"] += memory.sectors(address, lanes)
            self.counts[f"{what} bytes"] += size * len(lanes)
        elif self.counts is not None:
            self.counts["bank conflicts"] += memory.conflicts(address, size, lanes)

    # --- warps ------------------------------------------------------------------------------------

    def whole_warps(self) -> np.ndarray:
        """The numbers of the active warps, of which all threads must be active."""
        warps = self.active.reshape(-1, WARP)
        if (warps.any(1) != warps.all(1)).any():
            raise Fault("needs all 32 threads of a warp")
        return np.flatnonzero(warps.all(1))

    def shuffle(self, one: Instruction) -> None:
        """shfl.sync.bfly and .idx, in whole warps."""
        target, source, by, clamp, _ = one.operands
        if clamp != "31" or one.opcode[2] not in ("bfly", "idx"):
            raise Unsupported(one.text)
        self.whole_warps()
        by = self.read_all(by, "u32").reshape(-1, WARP) % WARP
        lane = by.astype(np.int64) if one.opcode[2] == "idx" else np.arange(WARP) ^ by
        values, undefined = self.bits(source, is_used=False), self.undefined_in(source)
        if undefined is not None:
            undefined = np.take_along_axis(undefined.reshape(-1, WARP), lane, 1).ravel()
        values = np.take_along_axis(values.reshape(-1, WARP), lane, 1).ravel()
        self.write(target, values, "b32", undefined)

    def reduce(self, one: Instruction) -> None:
        """redux.sync.add, .min and .max: the sum or extreme of a warp, for all its threads."""
        self.whole_warps()
        function = {"add": np.add, "min": np.minimum, "max": np.maximum}[one.opcode[2]]
        values = self.read(one.operands[1], one.opcode[-1]).reshape(-1, WARP)
        self.write(one.operands[0], np.repeat(function.reduce(values, 1), WARP), one.opcode[-1])

    def warp_barrier(self, one: Instruction) -> None:
        self.whole_warps()
        self.shared.synchronise(self.active, is_warp=True)

    def overlap(self, one: Instruction) -> None:
        """griddepcontrol.wait: until then, a kernel that has it runs beside the previous one."""
        if one.opcode[1] == "wait":
            self.beside &= ~self.active

    def policy(self, one: Instruction) -> None:  # of the L2's caching, without effect here
        self.write(one.operands[0], np.zeros(1, np.uint64), "b64")


def fewest_bytes(kernel: Kernel, space: str) -> int:
    """The fewest bytes that an access of the kernel moves in `space`, at most a word."""
    accesses = (one for block in kernel.blocks for one in block if one.opcode[0] in ("ld", "st"))
    return min(
        [memory.WORD, *(size_of(one.opcode[-1]) for one in accesses if space in one.opcode[1])]
    )


_HANDLERS = {
    "ld": Machine.load, "st": Machine.store, "mov": Machine.move, "shfl": Machine.shuffle,
    "redux": Machine.reduce, "bar": Machine.warp_barrier, "createpolicy": Machine.policy,
    "griddepcontrol": Machine.overlap,
    "mma": tensor_cores.multiply, "ldmatrix": tensor_cores.load_matrices,
    "stmatrix": tensor_cores.store_matrices, "wgmma": wgmma.handle, **hopper.HANDLERS,
}  # fmt: skip
