"""Finds loads that are narrower than 16 bytes per thread although they could be wide.

If every long row of the tensors of a launch starts and ends at a multiple of 16 bytes (the pointer,
the strides and the length of the contiguous dimension), then each load of a tile that has at least
16 bytes for every thread of the block must move 16 bytes per thread at a time. This is decided from
the tensors of the launch: Triton may have lost the divisibility. Tiles come from Triton's IR,
widths from the PTX; both name the line of the Python source.
"""

import math
import re

import torch

from kernels.common.launch import Launch

WIDE = 16  # bytes
LONG = 32  # bytes; shorter rows hold statistics, which are loaded one by one


def narrow(one: Launch, kernel) -> list[str]:
    """The loads that break the rule, as "norms/layer_norm.py:57 by 2 bytes"."""
    tensors = [value for value in one.arguments if isinstance(value, torch.Tensor)]
    long = [one for one in tensors if one.ndim and one.shape[-1] * one.element_size() >= LONG]
    if not all(map(rows_are_wide, long)):
        return []
    threads = kernel.metadata.num_warps * kernel.metadata.warp_size
    tiles, measured = tiles_of(kernel.asm["ttir"]), widths(kernel.asm["ptx"])
    # all callers of a helper share one line: a caller with a small tile excuses the line
    excused = {place for place, size in tiles if size < WIDE * threads}
    found = set()
    for place in {place for place, _ in tiles} - excused:
        width = min(measured.get(place, [WIDE]))
        if width < WIDE:
            # only the end of the path: a cached kernel may have been compiled elsewhere
            line = "/".join(place.rpartition(":")[0].split("/")[-2:])
            found.add(f"{line} by {width} bytes")
    return sorted(found)


def rows_are_wide(tensor: torch.Tensor) -> bool:
    """Return whether every row of `tensor` starts and ends at a multiple of 16 bytes."""
    dimensions = [d for d in zip(tensor.shape, tensor.stride(), strict=True) if d[0] != 1]
    contiguous = [length for length, stride in dimensions if stride == 1]
    steps = [stride for _, stride in dimensions if stride != 1]
    elements = math.gcd(tensor.storage_offset(), *contiguous, *steps)
    return len(contiguous) == 1 and elements * tensor.element_size() % WIDE == 0


def tiles_of(ttir: str) -> list[tuple[str, int]]:
    """The place in the source, "" if it is unknown, and the bytes of each load in Triton's IR."""
    aliases = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttir, re.MULTILINE))
    loads = r"= tt\.load .* : (?:tensor<([\dx]+)x)?!tt\.ptr<\D+(\d+).*? loc\((.*)\)$"
    return [
        (_place(place, aliases), math.prod(map(int, (shape or "1").split("x"))) * int(bits) // 8)
        for shape, bits, place in re.findall(loads, ttir, re.MULTILINE)
    ]


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
