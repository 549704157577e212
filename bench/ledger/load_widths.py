"""Which loads of a kernel must be 16 bytes wide and are not.

A load of a tile must move 16 bytes per thread at a time when
1. the tile holds at least 16 bytes for every thread of the block, and
2. every row of the tensor that it reads starts at a multiple of 16 bytes and is a multiple of
   16 bytes long: the pointer, the strides and the length of the contiguous dimension.

(2) is asked of the tensors that the launcher was given, not of what Triton was told about them:
an argument that lost its divisibility on the way is just what shall be found. Tile and pointer
come from Triton's IR, the width from the PTX; both name the place in the Python source.
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

import torch

WIDE = 16  # bytes


class Place(NamedTuple):
    file: str
    line: int
    column: int

    def __str__(self):
        # of the path no more: a kernel in Triton's cache may have been compiled elsewhere
        return f"{'/'.join(Path(self.file).parts[-2:])}:{self.line}"


class Tile(NamedTuple):
    """What one `tt.load` reads: a tile, or a single element."""

    pointer: str  # the kernel's argument, or some value where it cannot be traced so far
    bytes: int
    place: Place | None


def narrow(ttir: str, ptx: str, tensors: dict[str, torch.Tensor], threads: int) -> list[str]:
    """What breaks the rule, like "x_ptr at kernels/norms/layer_norm.py:57 by 2 bytes"."""
    tiles, measured = tiles_of(ttir), widths(ptx)
    due = {tile: _is_due(tile, tensors, threads) for tile in tiles}
    found = set()
    for tile in tiles:
        if due[tile] and tile.place in measured:
            # a helper's load stands at one place for all its callers: blame none for another's
            alone = all(due[other] for other in tiles if other.place == tile.place)
            width = (min if alone else max)(measured[tile.place])
            if width < WIDE:
                name = tile.pointer if tile.pointer in tensors else "a pointer"
                found.add(f"{name} at {tile.place} by {width} bytes")
    return sorted(found)


def _is_due(tile: Tile, tensors: dict[str, torch.Tensor], threads: int) -> bool:
    read = [tensors[tile.pointer]] if tile.pointer in tensors else tensors.values()
    return tile.bytes >= WIDE * threads and all(rows_are_wide(tensor) for tensor in read)


def rows_are_wide(tensor: torch.Tensor) -> bool:
    """Whether every row of `tensor` starts and ends at a multiple of 16 bytes."""
    size = tensor.element_size()
    dimensions = [d for d in zip(tensor.shape, tensor.stride(), strict=True) if d[0] != 1]
    contiguous = [length for length, stride in dimensions if stride == 1]
    steps = [stride for _, stride in dimensions if stride != 1]
    lengths = [tensor.storage_offset(), *contiguous, *steps]
    return len(contiguous) == 1 and not any(length * size % WIDE for length in lengths)


def tiles_of(ttir: str) -> list[Tile]:
    """The loads in Triton's IR, each with the argument that its addresses start from."""
    aliases = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttir, re.MULTILINE))
    origin: dict[str, str] = {}  # a value -> the value that its address was made from
    found = []
    for text in ttir.splitlines():
        text, located, place = text.rpartition(" loc(")
        text = text if located else place
        if load := re.search(r"= tt\.load (%[\w#]+).* : (?:tensor<([\dx]+)x)?!tt\.ptr<(\w+)", text):
            elements = math.prod(map(int, (load[2] or "1").split("x")))
            size = elements * max(int(re.search(r"\d+", load[3])[0]) // 8, 1)
            found.append(Tile(_argument(load[1], origin), size, _place(place[:-1], aliases)))
        elif loop := re.search(r"(%\w+)(?::\d+)? = scf\.for .*iter_args\((.*?)\)", text):
            carried = re.findall(r"(%\w+) = (%[\w#]+)", loop[2])
            origin[loop[1]] = carried[0][1]
            for index, (inside, before) in enumerate(carried):
                origin[inside] = origin[f"{loop[1]}#{index}"] = before
        elif made := re.match(r"\s*(%\w+) = tt\.\w+ (%[\w#]+)", text):
            origin[made[1]] = made[2]
        elif defined := re.match(r"\s*(%\w+)(?::\d+)? = ", text):
            origin.pop(defined[1], None)  # names return in sibling blocks
    return found


def widths(ptx: str) -> dict[Place, list[int]]:
    """The bytes that each load of global memory moves per thread, by its place in the source."""
    files = dict(re.findall(r'\.file\s+(\d+) "(.+?)"', ptx))
    found: dict[Place, list[int]] = {}
    place, places_left = None, math.inf
    for text in ptx.splitlines():
        if at := re.match(r"\s*\.loc\s+(\d+) (\d+) (\d+)", text):
            if places_left:
                place = Place(files[at[1]], int(at[2]), int(at[3]))
                places_left -= 1
        elif text.endswith(" inline asm"):
            # within inline assembly Triton 3.9 counts on from the first line: only that one is true
            places_left = 1 if "begin" in text else math.inf
        elif load := re.search(r"\bld\.global[\w.:]*?(?:\.v(\d))?\.[bfus](\d+)\b", text):
            found.setdefault(place, []).append(int(load[1] or 1) * int(load[2]) // 8)
        elif copy := re.search(r"\bcp\.async\.c[ag]\.shared\.global\S* .*?, 0x([0-9a-f]+)", text):
            found.setdefault(place, []).append(int(copy[1], 16))
    return found


def _argument(value: str, origin: dict[str, str]) -> str:
    while value in origin:
        value = origin[value]
    return value[1:]


def _place(text: str, aliases: dict[str, str]) -> Place | None:
    """Follow aliases, names and call sites to the innermost place."""
    while not (exact := re.fullmatch(r'"(.+)":(\d+):(\d+)(?: to .*)?', text)):
        if not (alias := re.search(r"#loc\d*", text)):
            return None
        text = aliases[alias[0]]
    return Place(exact[1], int(exact[2]), int(exact[3]))
