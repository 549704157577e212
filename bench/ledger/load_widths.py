"""Finds loads that are narrower than 16 bytes per thread although they could be wide.

A load of a tile must move 16 bytes per thread at a time if
1. the tile has at least 16 bytes for every thread of the block, and
2. every row of the tensor starts at a multiple of 16 bytes and is a multiple of 16 bytes long:
   the pointer, the strides and the length of the contiguous dimension.

(2) is decided from the tensors of the launch: Triton may have lost the divisibility. Tiles and
pointers come from Triton's IR, widths from the PTX; both name the line of the Python source.
"""

import math
import re
from typing import NamedTuple

import torch

from kernels.common.launch import Launch

WIDE = 16  # bytes


class Tile(NamedTuple):
    """The operand of one `tt.load`: a tile or a single element."""

    pointer: str  # the kernel's argument, or another value if the address cannot be traced to one
    bytes: int
    place: str  # "file:line:column", or "" if it is unknown


def narrow(one: Launch, kernel) -> list[str]:
    """The loads that break the rule, as "x_ptr at norms/layer_norm.py:57 by 2 bytes"."""
    named = zip(one.kernel.arg_names, one.arguments, strict=False)  # constexprs come by keyword
    tensors = {name: value for name, value in named if isinstance(value, torch.Tensor)}
    threads = kernel.metadata.num_warps * kernel.metadata.warp_size
    tiles, measured = tiles_of(kernel.asm["ttir"]), widths(kernel.asm["ptx"])

    def must_be_wide(tile: Tile) -> bool:
        read = [tensors[tile.pointer]] if tile.pointer in tensors else tensors.values()
        return tile.bytes >= WIDE * threads and all(map(rows_are_wide, read))

    # all callers of a helper share one line: a caller that may be narrow excuses the line
    excused = {tile.place for tile in tiles if not must_be_wide(tile)}
    found = set()
    for tile in filter(must_be_wide, tiles):
        width = (max if tile.place in excused else min)(measured.get(tile.place, [WIDE]))
        if width < WIDE:
            name = tile.pointer if tile.pointer in tensors else "a pointer"
            # only the end of the path: a cached kernel may have been compiled elsewhere
            line = "/".join(tile.place.rpartition(":")[0].split("/")[-2:])
            found.add(f"{name} at {line} by {width} bytes")
    return sorted(found)


def rows_are_wide(tensor: torch.Tensor) -> bool:
    """Return whether every row of `tensor` starts and ends at a multiple of 16 bytes."""
    dimensions = [d for d in zip(tensor.shape, tensor.stride(), strict=True) if d[0] != 1]
    contiguous = [length for length, stride in dimensions if stride == 1]
    steps = [stride for _, stride in dimensions if stride != 1]
    elements = math.gcd(tensor.storage_offset(), *contiguous, *steps)
    return len(contiguous) == 1 and elements * tensor.element_size() % WIDE == 0


def tiles_of(ttir: str) -> list[Tile]:
    """The loads in Triton's IR, each with the argument from which its address is computed."""
    aliases = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttir, re.MULTILINE))
    origin: dict[str, str] = {}  # value -> the value from which its address is computed
    found = []
    for text in ttir.splitlines():
        text, located, place = text.rpartition(" loc(")
        text = text if located else place
        if load := re.search(r"= tt\.load (%[\w#]+).* : (?:tensor<([\dx]+)x)?!tt\.ptr<(\w+)", text):
            elements = math.prod(map(int, (load[2] or "1").split("x")))
            size = elements * max(int(re.search(r"\d+", load[3])[0]) // 8, 1)
            value = load[1]
            while value in origin:
                value = origin[value]
            found.append(Tile(value[1:], size, _place(place[:-1], aliases)))
        elif loop := re.search(r"(%\w+)(?::\d+)? = scf\.for .*iter_args\((.*?)\)", text):
            carried = re.findall(r"(%\w+) = (%[\w#]+)", loop[2])
            origin[loop[1]] = carried[0][1]
            for index, (inside, before) in enumerate(carried):
                origin[inside] = origin[f"{loop[1]}#{index}"] = before
        elif made := re.match(r"\s*(%\w+) = tt\.\w+ (%[\w#]+)", text):
            origin[made[1]] = made[2]
        elif defined := re.match(r"\s*(%\w+)(?::\d+)? = ", text):
            origin.pop(defined[1], None)  # sibling blocks reuse names
    return found


def widths(ptx: str) -> dict[str, list[int]]:
    """Bytes per thread of each load of global memory, by its place in the source."""
    files = dict(re.findall(r'\.file\s+(\d+) "(.+?)"', ptx))
    found: dict[str, list[int]] = {}
    place, places_left = "", math.inf
    for text in ptx.splitlines():
        if at := re.match(r"\s*\.loc\s+(\d+) (\d+) (\d+)", text):
            if places_left:
                place = f"{files[at[1]]}:{at[2]}:{at[3]}"
                places_left -= 1
        elif text.endswith(" inline asm"):
            # Triton 3.9 numbers the lines of inline assembly: only the first is the source's
            places_left = 1 if "begin" in text else math.inf
        elif load := re.search(r"\bld\.global[\w.:]*?(?:\.v(\d))?\.[bfus](\d+)\b", text):
            found.setdefault(place, []).append(int(load[1] or 1) * int(load[2]) // 8)
        elif copy := re.search(r"\bcp\.async\.c[ag]\.shared\.global\S* .*?, 0x([0-9a-f]+)", text):
            found.setdefault(place, []).append(int(copy[1], 16))
    return found


def _place(text: str, aliases: dict[str, str]) -> str:
    """The innermost place that aliases, names and call sites refer to."""
    while not (exact := re.fullmatch(r'"(.+)":(\d+:\d+)(?: to .*)?', text)):
        if not (alias := re.search(r"#loc\d*", text)):
            return ""
        text = aliases[alias[0]]
    return f"{exact[1]}:{exact[2]}"
