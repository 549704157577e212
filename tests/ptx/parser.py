"""Reads PTX, the assembly language that Triton emits, into basic blocks of instructions.

    @%p2 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd7 + 16 ];

becomes the opcode ("ld", "global", "v4", "b32"), executed by the threads whose %p2 is set, with the
operands ("%r1", "%r2", "%r3", "%r4") and Address("%rd7", 16). A block is entered only at its first
instruction, and ends where threads may part or meet: at a label, a branch or a barrier.
"""

import re
from typing import NamedTuple


class Address(NamedTuple):
    """[base + offset], or the tile at [base, {x, y}] of the tensor that a descriptor describes."""

    base: str
    offset: int = 0
    coordinates: tuple[str, ...] = ()


class Instruction(NamedTuple):
    opcode: tuple[str, ...]
    operands: tuple  # each a str, a tuple of them for {a, b}, or an Address
    predicate: str | None
    negated: bool
    text: str
    line: int  # of the PTX, from 1
    place: str  # "layer_norm.py:57", of the Python source


class Kernel:
    """Parameters as (name, type), the number of threads of a program, and the blocks of the code.

    `labels` gives the block of a label, `registers` the type of "%r" (all its numbers) or "tmp".
    """

    def __init__(self, ptx: str):
        self.parameters: list[tuple[str, str]] = []
        self.registers: dict[str, str] = {}
        self.blocks: list[list[Instruction]] = [[]]
        self.labels: dict[str, int] = {}
        self.threads, place = 0, ""
        for number, line in enumerate(ptx.splitlines(), 1):
            code, _, comment = line.partition("//")
            code = code.strip()
            if code.startswith(".section"):
                break  # debugging information
            if code.startswith(".loc"):
                place = comment.strip().rpartition(":")[0]
            elif found := re.match(r"\.param \.(\w+) .*?(\w+),?$", code):
                self.parameters.append((found[2], found[1]))
            elif found := re.match(r"\.reqntid (\d+)", code):
                self.threads = int(found[1])
            elif found := re.fullmatch(r"(\$?\w+):", code):
                self._begin_block()
                self.labels[found[1]] = len(self.blocks) - 1
            elif ";" in code:
                for statement in code.lstrip("{ ").removesuffix("}").split(";"):
                    self._add(statement.strip(), number, place)

    def type_of(self, register: str) -> str:
        """The type of "%r17" is that of "%r", for example "b32"."""
        if register not in self.registers:
            self.registers[register] = self.registers[register.rstrip("0123456789")]
        return self.registers[register]

    def _begin_block(self) -> None:
        if self.blocks[-1]:
            self.blocks.append([])

    def _add(self, text: str, line: int, place: str) -> None:
        if declared := re.match(r"\.reg \.(\w+)\s+(%?\w+)", text):
            self.registers[declared[2]] = declared[1]
        elif found := re.match(r"(?:@(!?)(%?\w+)\s+)?([a-z][\w.:]*)\s*(.*)", text):
            negated, predicate, opcode, rest = found.groups()
            name, operands = tuple(opcode.split(".")), tuple(map(_operand, _split(rest)))
            if name[0] == "bra":  # inline assembly repeats labels: the last one before is meant
                operands = (self.labels.get(operands[0], operands[0]),)
            place_in_source = text, line, place
            self.blocks[-1].append(
                Instruction(name, operands, predicate, bool(negated), *place_in_source)
            )
            if name[0] in ("bra", "ret") or name[:2] == ("bar", "sync"):
                self._begin_block()


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets and braces."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text)]


def _operand(text: str):
    if text.startswith("{"):
        return tuple(part.strip() for part in text.strip("{}").split(","))
    if not text.startswith("["):
        return tuple(text.split("|")) if "|" in text else text
    base, *coordinates = _split(text.strip("[]"))
    base, offset = re.fullmatch(r"([^\s+-]+)\s*\+?\s*(-?\d+)?", base).groups()
    return Address(base, int(offset or 0), _operand(coordinates[0]) if coordinates else ())
