"""The hot loop of a kernel, and how long each pipe of an SM is busy with one turn of it.

A ranking of tiles, not a measurement: it counts issue rates alone. Latencies, bank conflicts,
caches, the clock, and what tensor cores and TMA move by themselves are left out; predicated
instructions count as run, and what stands behind a branch of the loop (a persistent kernel's last
turn of a tile) does not; a warp-specialised loop is counted as if all warps ran it. What it can
say: which pipe is fullest, and what share of the tensor cores' rate that pipe allows if all else
overlaps with it, and if nothing does.

Cycles are cycles of one SM for one block. Rates are from the CUDA C++ Programming Guide
("Throughput of Native Arithmetic Instructions"), for tensor cores from NVIDIA's white papers.
"""

import itertools
import re
from typing import NamedTuple

from bench.ledger.sass import TENSOR, Instruction


class Rates(NamedTuple):
    """Per clock and SM."""

    tensor: int  # floating-point operations, dense, 16-bit operands, fp32 sums
    fma: int  # lanes
    alu: int


RATES = {
    80: Rates(2048, 64, 64),
    86: Rates(1024, 128, 64),
    89: Rates(1024, 128, 64),
    90: Rates(4096, 128, 64),
    100: Rates(8192, 128, 64),
    120: Rates(1024, 128, 128),
}
EXPONENTIAL = 16  # lanes per clock and SM, on all of them; conversions share the pipe
HALF_FMA = 64  # lanes: integer products, and products of pairs
MEMORY_LANES, MEMORY_BYTES = 32, 128
ISSUE = 4  # instructions of a warp

_PIPES = {
    "exponential": "MUFU F2I I2F F2F FRND POPC FLO BREV",
    "fma": "FFMA FMUL FADD FFMA2 FMUL2 FADD2 HFMA2 HMUL2 HADD2 IMAD",
    "memory": "LDG STG LDS STS LDSM STSM LDGSTS SHFL LDL STL ATOM ATOMG ATOMS RED MATCH",
    "control": "BRA EXIT BAR NOP S2R CS2R BSSY BSYNC DEPBAR LDGDEPBAR WARPSYNC WARPGROUP SYNCS "
    "FENCE MEMBAR ERRBAR CCTL ELECT LDC R2UR S2UR YIELD NANOSLEEP USETMAXREG ARRIVES LDT STT",
}
_PIPE = {name: pipe for pipe, names in _PIPES.items() for name in names.split()}
PIPES = ("tensor", "exponential", "fma", "alu", "memory")


def hottest(code: list[Instruction], ttgir: str, architecture: int, warps: int) -> dict:
    """Cycles per pipe of the loop with the most tensor work, or else the most memory work.

    Where a kernel has no such loop, its whole body is counted.
    """
    per_mma = _operations_per_tcgen05(ttgir)
    loops = [loop for loop in _natural_loops(code) if _work(loop.always, per_mma) > (0, 0)]
    innermost = [a.always for a in loops if not any(b.body < a.body for b in loops)]
    # of two equal loops (one masks, one does not) the shorter runs more often
    body = max(innermost, key=lambda loop: (_work(loop, per_mma), -len(loop)), default=code)
    body = [one for one in body if one.name != "NOP"]
    cycles = _cycles(body, RATES[architecture], warps, per_mma)
    busy = [cycles[pipe] for pipe in PIPES]
    fullest, together = max(*busy, cycles["issue"]), sum(busy)
    moved = sum(i.width * 32 * warps for i in body if i.name in ("LDG", "STG", "LDGSTS"))
    return {
        "is_loop": bool(innermost),
        "instructions": len(body),
        "cycles": cycles,
        "bytes": moved,  # to and from global memory; what TMA moves is not seen
        # the share of the tensor cores' rate, or bytes per clock and SM
        "overlapped": round((cycles["tensor"] or moved) / fullest, 3),
        "serial": round((cycles["tensor"] or moved) / together, 3),
    }


def _work(body: list[Instruction], per_mma: float) -> tuple[float, int]:
    tensor = sum(_operations(i, 4, per_mma) for i in body if TENSOR.fullmatch(i.name))
    return tensor, sum(i.width for i in body if i.name in ("LDG", "LDGSTS", "STG"))


def _cycles(body, rates: Rates, warps: int, per_mma: float) -> dict[str, float]:
    cycles = dict.fromkeys(PIPES, 0.0)
    for one in body:
        if TENSOR.fullmatch(one.name):
            speed = 0.5 if "TF32" in one.opcode else 2 if one.name[0] in "QI" else 1
            cycles["tensor"] += _operations(one, warps, per_mma) / (rates.tensor * speed)
            continue
        pipe = _PIPE.get(one.name, "control" if one.name.startswith("U") else "alu")
        if pipe == "memory":
            moved = 32 * (4 if one.name == "SHFL" else one.width)
            cycles[pipe] += warps * max(32 / MEMORY_LANES, moved / MEMORY_BYTES)
        elif pipe != "control":
            half = one.name in ("IMAD", "FFMA2", "FMUL2", "FADD2")
            lanes = {
                "exponential": EXPONENTIAL,
                "fma": HALF_FMA if half else rates.fma,
                "alu": rates.alu,
            }[pipe]
            cycles[pipe] += warps * 32 / lanes
    cycles["issue"] = len(body) * warps / ISSUE
    return {pipe: round(count, 1) for pipe, count in cycles.items()}


def _operations(one: Instruction, warps: int, per_mma: float) -> float:
    """Floating-point operations of one tensor-core instruction, over all warps of the block."""
    if shape := re.search(r"\.(\d+)x(\d+)x(\d+)", one.opcode):  # HGMMA: four warps share one
        m, n, k = map(int, shape.groups())
        return 2 * m * n * k * warps / 4
    if shape := re.search(r"\.168(\d+)\b", one.opcode):  # HMMA: one per warp
        return 2 * 16 * 8 * int(shape[1]) * warps
    return per_mma  # UTCHMMA: one thread for the block, the shape is not in the name


def _operations_per_tcgen05(ttgir: str) -> float:
    """Mean operations of one UTCHMMA: at most 128 rows and 16 deep, of the products in the IR."""
    products = re.findall(
        r"ttng\.tc_gen5_mma .*: !ttg\.memdesc<(\d+)x(\d+)x\w+,.*?>, !ttg\.memdesc<\d+x(\d+)x", ttgir
    )
    shapes = [tuple(map(int, shape)) for shape in products]
    if not shapes:
        return 0.0
    instructions = sum(max(m // 128, 1) * k / 16 for m, k, _ in shapes)
    return sum(2 * m * n * k for m, k, n in shapes) / instructions


def _is_tcgen05(one: Instruction) -> bool:
    return one.name.startswith("UTC") and one.name.endswith("MMA")


class Loop(NamedTuple):
    body: set[int]  # addresses of blocks
    always: list[Instruction]  # of the blocks that every turn goes through, for one warp at least


def _natural_loops(code: list[Instruction]) -> list[Loop]:
    """The loops: a jump back to a block that every way to the jump goes through.

    A jump back alone is no loop: code that waits for a barrier often stands behind the exit and
    jumps back into the middle. Every turn has its tcgen05 products, which one warp begins: for the
    others they stand behind a branch.
    """
    blocks, after = _blocks(code)
    before: dict[int, set[int]] = {start: set() for start in blocks}
    for start, nexts in after.items():
        for follower in nexts:
            before[follower].add(start)
    dominators = _dominators(list(blocks), before)
    chosen = {start for start, block in blocks.items() if any(_is_tcgen05(one) for one in block)}
    bodies: dict[int, set[int]] = {}
    always: dict[int, set[int]] = {}
    for tail, nexts in after.items():
        for head in nexts & dominators[tail]:
            body = bodies.setdefault(head, {head})
            always[head] = dominators[tail] & always.get(head, dominators[tail])
            waiting = [tail]
            while waiting:
                block = waiting.pop()
                if block not in body:
                    body.add(block)
                    waiting.extend(before[block])
    return [
        Loop(
            body, [one for start in sorted(body & (always[head] | chosen)) for one in blocks[start]]
        )
        for head, body in bodies.items()
    ]


def _blocks(code: list[Instruction]) -> tuple[dict, dict]:
    """Runs of instructions without a jump, by address, and the blocks that follow each."""
    starts = {code[0].address} | {i.jump for i in code if i.jump is not None}
    starts |= {b.address for a, b in itertools.pairwise(code) if a.name in ("BRA", "EXIT")}
    blocks: dict[int, list[Instruction]] = {}
    for one in code:
        if one.address in starts:
            current = blocks[one.address] = []
        current.append(one)
    order = list(blocks)
    after = {}
    for index, start in enumerate(order):
        last = blocks[start][-1]
        leaves = last.name in ("BRA", "EXIT", "RET") and not last.guarded
        if last.name == "BRA" and not last.operands.startswith("`"):
            leaves = False  # the condition stands among the operands
        nexts = set() if leaves or index + 1 == len(order) else {order[index + 1]}
        after[start] = nexts | ({last.jump} if last.jump is not None else set())
    return blocks, after


def _dominators(order: list[int], before: dict[int, set[int]]) -> dict[int, set[int]]:
    dominators = {start: set(order) for start in order}
    dominators[order[0]] = {order[0]}
    changed = True
    while changed:
        changed = False
        for start in order[1:]:
            ways = [dominators[block] for block in before[start]]
            new = {start} | (set.intersection(*ways) if ways else set())
            changed |= new != dominators[start]
            dominators[start] = new
    return dominators
