"""Counts instructions in the machine code (SASS) of an NVIDIA kernel.

`cuobjdump` comes with Triton's wheel; neither a CUDA toolkit nor a GPU is needed.
"""

import re
import subprocess
import tempfile
from collections import Counter
from typing import NamedTuple

from triton import knobs

TENSOR = re.compile(r"[HIDQO]MMA|[HIQB]GMMA|UTC[A-Z]*MMA")  # sm_80 and sm_120, sm_90, sm_100
ATOMICS = {"ATOM", "ATOMG", "ATOMS", "RED", "REDG", "REDS", "UTMAREDG", "UBLKRED"}
SPILLS = {"LDL", "STL"}  # ptxas spills registers to local memory
_WIDTH = re.compile(r"\.(?:ENL2\.)?(256|128|64|32|[US]?16|[US]8)\b")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@\S+ )?\s*([A-Z][\w.]*) *(.*?) *;")


class Instruction(NamedTuple):
    opcode: str  # with its modifiers: "LDG.E.128"
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def width(self) -> int:
        """Bytes per thread that a load or store moves; 4 if the opcode does not name a width."""
        if self.name in ("LDSM", "STSM"):  # .1, .2 or .4 matrices of 8 x 8 16-bit numbers
            return 4 * int(self.opcode[-1])
        bits = _WIDTH.findall(self.opcode)
        return int(bits[-1].strip("US")) // 8 if bits else 4


def disassemble(cubin: bytes) -> tuple[int, list[Instruction]]:
    """The number of registers per thread, and the instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "--dump-sass", file.name]
        # with its warnings, which are about formats of debuggers
        listing = subprocess.check_output(command, stderr=subprocess.STDOUT, text=True)
    return int(re.search(r"REG:(\d+)", listing)[1]), parse(listing)


def parse(listing: str) -> list[Instruction]:
    """The instructions in the output of cuobjdump."""
    return [Instruction(*found) for found in _INSTRUCTION.findall(listing)]


def counts(code: list[Instruction]) -> dict:
    """The columns of the ledger that are counts of instructions."""
    named = Counter(instruction.name for instruction in code)
    return {
        "instructions": len(code) - named["NOP"],
        # a stored zero is an argument of the compiler's own address check (sm_120)
        "spills": sum(i.name in SPILLS and ", RZ" not in i.operands for i in code),
        "atomics": sum(i.name in ATOMICS and not _is_order_independent(i) for i in code),
        "tensor": {name: n for name, n in sorted(named.items()) if TENSOR.fullmatch(name)},
        "exp2": sum(instruction.opcode.startswith("MUFU.EX2") for instruction in code),
        "loads": _widths(code, ("LDG", "LDGSTS"), "UTMALDG"),
        "stores": _widths(code, ("STG",), "UTMASTG"),
    }


def overwritten(code: list[Instruction]) -> int:
    """Number of instructions that write a register which a wgmma in flight still reads (sm_90).

    A wgmma with its left operand in registers reads them until it has been waited for. ptxas 12.8
    and 12.9 may reuse them earlier (Triton issue 11781).
    """
    in_use: set[int] = set()
    found = 0
    for one in code:
        if one.opcode.startswith("WARPGROUP.DEPBAR"):
            in_use.clear()
        elif left := re.match(r"R\d+, R(\d+), gdesc", one.operands):
            in_use.update(range(int(left[1]), int(left[1]) + 4))  # 64 x 16 over 128 threads
        else:
            found += bool(in_use & _written(one))
    return found


def _written(one: Instruction) -> set[int]:
    """The registers that an instruction writes."""
    first = re.match(r"(?:P\w+, )?R(\d+)\b", one.operands)
    if first is None or one.name.startswith(("ST", "RED", "BRA", "WARPSYNC", "ISETP", "FSETP")):
        return set()
    wide = one.name.startswith(("LD", "HGMMA", "IGMMA", "QGMMA")) or ".WIDE" in one.opcode
    length = max(1, one.width // 4) if one.name.startswith("LD") else 1 + wide
    return set(range(int(first[1]), int(first[1]) + length))


def _is_order_independent(one: Instruction) -> bool:
    """Whether an atomic is the compiler's own and its result does not depend on the order.

    AND and OR of shared memory allocate tensor memory (sm_100); an exchange that discards the old
    value publishes a TMA descriptor.
    """
    discards = re.match(r"(PT, )?RZ\b", one.operands)
    return bool(discards) and one.opcode.startswith(("ATOMS.AND", "ATOMS.OR", "ATOMG.E.EXCH"))


def _widths(code: list[Instruction], names: tuple[str, ...], tma: str) -> dict[str, int]:
    """{"16": 4, "4": 1, "tile": 2}: bytes per thread, or a tile by TMA -> instructions."""
    wide_first = sorted((one.width for one in code if one.name in names), reverse=True)
    return dict(Counter([*map(str, wide_first), *("tile" for one in code if one.name == tma)]))
