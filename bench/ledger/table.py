"""The ledger as people read it."""

import re

FIGURES = """\
regs: registers per thread; spill: accesses to local memory; shared: bytes per block; blocks, warps:
resident on one SM, and the share of the warps that it can hold; mma: tensor-core instructions;
exp2: exponentials; loads, stores: of global memory, bytes per thread (or a tile) x instructions;
code: instructions."""

LOOPS = """\
The hottest loop (or the whole kernel, where it has none): instructions, and cycles of one SM for
one block and turn on each pipe; then the share of the tensor cores' rate, or the bytes of global
memory per clock and SM, that the fullest pipe allows if all overlaps, and if nothing does.
Counted from issue rates: a ranking of tiles, not a measurement."""


def table(rows: list[dict]) -> str:
    head = ["regs", "spill", "shared", "blocks", "warps", "mma", "exp2", "loads", "stores", "code"]
    return _tables(rows, head, _figures) + "\n" + FIGURES


def loop_table(rows: list[dict]) -> str:
    head = ["code", "tensor", "exp", "fma", "alu", "memory", "issue", "overlap", "serial"]
    return _tables(rows, head, _loop) + "\n" + LOOPS


def _figures(row: dict) -> list:
    return [
        row["registers"],
        row["spills"],
        row["shared"],
        row.get("blocks", "-"),
        f"{row['occupancy']:.0%}" if "occupancy" in row else "-",
        _counts(row.get("tensor", {})),
        row.get("exp2", "-"),
        _counts(row.get("loads", {})),
        _counts(row.get("stores", {})),
        row.get("instructions", "-"),
    ]


def _loop(row: dict) -> list:
    if "loop" not in row:
        return ["-"] * 9
    loop, cycles = row["loop"], row["loop"]["cycles"]
    unit, scale = ("%", 100) if cycles["tensor"] else (" B", 1)
    return [
        loop["instructions"] if loop["is_loop"] else f"all {loop['instructions']}",
        *(f"{count:.0f}" for count in cycles.values()),
        *(f"{loop[bound] * scale:.0f}{unit}" for bound in ("overlapped", "serial")),
    ]


def _tables(rows: list[dict], head: list[str], cells) -> str:
    """One table per architecture, figures to the right, the kernel's name and tile last."""
    tables = []
    for target in dict.fromkeys(row["target"] for row in rows):
        lines = [[*head, target if target.startswith("gfx") else f"sm_{target}"]]
        failed = []
        for row in (row for row in rows if row["target"] == target):
            if "error" in row:
                failed.append(f"{row['key']}: does not compile: {row['error']}")
            else:
                lines.append([*map(str, cells(row)), _short(row["key"])])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        tables += [
            "  ".join(cell.rjust(width) for cell, width in zip(line[:-1], widths, strict=False))
            + "  "
            + line[-1]
            for line in lines
        ]
        tables += [*failed, ""]
    return "\n".join(tables)


def _counts(counts: dict) -> str:
    return " ".join(f"{what}x{count}" for what, count in counts.items()) or "-"


def _short(key: str) -> str:
    """layer_norm_forward_kernel bf16 fp32 BLOCK=512 num_warps=4: without sizes and divisibility."""
    name, types, tile = re.fullmatch(r"(.+?)\((.*)\) (.*)", key).groups()
    dtypes = dict.fromkeys(re.findall(r"\*(\w+)", types))
    return " ".join([name, *dtypes, tile])
