"""Reading machine code: what an NVIDIA kernel is made of, instruction by instruction.

`nvdisasm` and `cuobjdump` lie in Triton's wheel; no CUDA toolkit and no card is needed.
"""

import re
import subprocess
import tempfile
from collections import Counter
from typing import NamedTuple

TENSOR = re.compile(r"[HIDQO]MMA|[HIQB]GMMA|UTC[A-Z]*MMA")  # sm_80 and sm_120, sm_90, sm_100
ATOMICS = {"ATOM", "ATOMG", "ATOMS", "RED", "REDG", "REDS", "UTMAREDG", "UBLKRED"}
SPILLS = {"LDL", "STL"}  # local memory is where ptxas puts what the registers cannot hold
_WIDTH = re.compile(r"\.(?:ENL2\.)?(256|128|64|32|[US]?16|[US]8)\b")


class Instruction(NamedTuple):
    address: int
    opcode: str  # with its modifiers: "LDG.E.128"
    operands: str
    guarded: bool  # runs only where a predicate holds
    jump: int | None = None  # the address that a branch goes to

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def width(self) -> int:
        """Bytes that a load or store moves per thread; 4 where the opcode does not say."""
        if self.name in ("LDSM", "STSM"):  # .1, .2 or .4 matrices of 8 x 8 numbers of 16 bits
            return 4 * int(self.opcode[-1])
        bits = _WIDTH.findall(self.opcode)
        return int(bits[-1].strip("US")) // 8 if bits else 4


def disassemble(cubin: bytes) -> list[Instruction]:
    from triton import knobs

    return parse(_run(knobs.nvidia.nvdisasm.path, cubin, "--print-code"))


def registers(cubin: bytes) -> int:
    """Registers per thread."""
    from triton import knobs

    usage = _run(knobs.nvidia.cuobjdump.path, cubin, "--dump-resource-usage")
    return int(re.search(r"REG:(\d+)", usage).group(1))


def parse(listing: str) -> list[Instruction]:
    """The instructions in what nvdisasm prints, with labels turned into addresses."""
    labels: dict[str, int] = {}
    pending: list[str] = []
    found = []
    for text in listing.splitlines():
        if label := re.match(r"(\.L\w+):", text):
            pending.append(label[1])
        elif code := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(@\S+ )?\s*([A-Z][\w.]*)(.*);", text):
            address = int(code[1], 16)
            labels.update((name, address) for name in pending)
            pending.clear()
            found.append(Instruction(address, code[3], code[4].strip(), bool(code[2])))
    return [
        one._replace(jump=labels[_label(one.operands)]) if one.name == "BRA" else one
        for one in found
    ]


def counts(code: list[Instruction]) -> dict:
    """The figures of the ledger that are counts of instructions, by what they mean."""
    named = Counter(instruction.name for instruction in code)
    return {
        "instructions": len(code) - named["NOP"],
        "spills": sum(i.name in SPILLS and not _is_argument(i) for i in code),
        "atomics": sum(i.name in ATOMICS and not _is_housekeeping(i) for i in code),
        "tensor": {name: n for name, n in sorted(named.items()) if TENSOR.fullmatch(name)},
        "exp2": sum(instruction.opcode.startswith("MUFU.EX2") for instruction in code),
        "loads": _widths(code, ("LDG", "LDGSTS"), "UTMALDG"),
        "stores": _widths(code, ("STG",), "UTMASTG"),
    }


def overwritten(code: list[Instruction]) -> int:
    """How many instructions write a register that a product in flight still reads (sm_90).

    A wgmma with its left operand in registers reads them until it has been waited for. ptxas 12.8
    and 12.9 have been seen to reuse them before (Triton issue 11781).
    """
    read: set[int] = set()
    found = 0
    for one in code:
        if one.opcode.startswith("WARPGROUP.DEPBAR"):
            read.clear()
        elif left := re.match(r"R\d+, R(\d+), gdesc", one.operands):
            read.update(range(int(left[1]), int(left[1]) + 4))  # 64 x 16 over 128 threads
        else:
            found += bool(read & _written(one))
    return found


def _written(one: Instruction) -> set[int]:
    """The registers that an instruction writes."""
    first = re.match(r"(?:P\w+, )?R(\d+)\b", one.operands)
    if first is None or one.name.startswith(("ST", "RED", "BRA", "WARPSYNC", "ISETP", "FSETP")):
        return set()
    wide = one.name.startswith(("LD", "HGMMA", "IGMMA", "QGMMA")) or ".WIDE" in one.opcode
    length = max(1, one.width // 4) if one.name.startswith("LD") else 1 + wide
    return set(range(int(first[1]), int(first[1]) + length))


def _is_argument(one: Instruction) -> bool:
    """Nobody saves a zero: the compiler's own check of an address (sm_120) is called with it."""
    return one.name == "STL" and bool(re.search(r", RZ\b", one.operands))


def _is_housekeeping(one: Instruction) -> bool:
    """The compiler's own atomics, whose order does not matter.

    AND and OR of shared memory hand out tensor memory (sm_100); an exchange that drops the old
    value publishes a TMA descriptor.
    """
    dropped = re.match(r"(PT, )?RZ\b", one.operands)
    return bool(dropped) and one.opcode.startswith(("ATOMS.AND", "ATOMS.OR", "ATOMG.E.EXCH"))


def _widths(code, names, of_tiles) -> dict[str, int]:
    """{"16": 4, "4": 1, "tile": 2}: bytes per thread, or a tile at once (TMA) -> instructions."""
    widths = Counter(i.width for i in code if i.name in names)
    tiles = sum(i.name == of_tiles for i in code)
    rows = {str(width): n for width, n in sorted(widths.items(), reverse=True)}
    return rows | ({"tile": tiles} if tiles else {})


def _label(operands: str) -> str:
    return re.search(r"`\((\.L\w+)\)", operands)[1]


def _run(tool: str, cubin: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, *options, file.name], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tool} could not read a kernel: {done.stderr.strip()}")
    return done.stdout
