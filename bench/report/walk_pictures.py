"""The pictures of docs/walk.md: how attention is cut into tiles, and what a program carries along.

    python -m bench.report.walk_pictures            draw them
    python -m bench.report.walk_pictures --check    exit 1 where a picture is not what this file draws

Their numbers are computed here by the rules of `kernels/attention/attention.py`, at sizes that can be seen.
"""

import argparse
import math
import sys
from pathlib import Path

from bench.report.html import Markup, tag

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #333; } .small { font-size: 11px; }
.plain { fill: #7fb0dd; } .masked { fill: #ddaa33; } .skipped { fill: #eeeeee; }
.now { fill: #4477aa; } .done { fill: #b9d3ea; } .frame { fill: none; stroke: #888; }
.curve { fill: none; stroke: #4477aa; stroke-width: 2; } .grey { stroke: #999; }
rect { stroke: #ffffff; } .line { stroke: #888; }
@media (prefers-color-scheme: dark) { text { fill: #ddd; } .skipped { fill: #2a2a2e; }
  .plain { fill: #4477aa; } .now { fill: #99c4ee; } .done { fill: #2f4a66; }
  .masked { fill: #aa7f1c; } rect { stroke: #161618; } }
"""
SCORES = (1.0, 3.0, 0.0, 2.0, 2.0, 5.0, 1.0, 4.0, 6.0, 2.0, 4.0, 3.0)  # one row of S, in base 2
TILE = 4  # keys


def text(x, y, said, **more) -> Markup:
    return tag("text", said, x=x, y=y, **more)


def box(x, y, width, height, kind) -> Markup:
    return tag("rect", x=x, y=y, width=width, height=height, class_=kind)


def drawing(width: int, height: int, title: str, *parts: Markup) -> str:
    style = Markup(f"<style>{STYLE}</style>")
    size = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    svg = tag("svg", tag("title", title), style, *parts, xmlns="http://www.w3.org/2000/svg", **size)
    return svg.replace("><", ">\n<") + "\n"


def kinds(T: int, M: int, N: int) -> list[list[str]]:
    """What the causal kernel does with each tile of M rows and N keys, row by row of tiles."""
    grid = []
    for first_row in range(0, T, M):
        seen_by_all, seen_by_any = min(first_row + 1, T), min(first_row + M, T)
        line = []
        for first_key in range(0, T, N):
            masked = first_key + N > seen_by_all
            computed = "masked" if masked else "plain"
            line.append(computed if first_key < seen_by_any else "skipped")
        grid.append(line)
    return grid


def tiling() -> str:
    """One program: M rows of Q, and tiles of N keys one after the other."""
    side, tiles, top, left = 36, 8, 70, 120
    row, now = 5, 3  # the program's band, and the tile it is at
    parts = [text(left, 20, "K and V: tiles of N keys, one after the other")]
    for column in range(tiles):
        kind = "now" if column == now else "done" if column < now else "skipped"
        parts.append(box(left + side * column, 30, side, 26, kind))
    for line in range(tiles):
        y = top + side * line
        parts.append(box(left - 46, y, 32, side, "now" if line == row else "skipped"))
        for column in range(tiles):
            kind = "skipped"
            if line == row:
                kind = "now" if column == now else "done" if column < now else "skipped"
            parts.append(box(left + side * column, y, side, side, kind))
    right, middle = left + side * tiles + 20, top + side * row
    parts += [
        text(8, top + 14, "Q: one"),
        text(8, top + 30, "program"),
        text(8, top + 46, "per M"),
        text(8, top + 62, "rows"),
        text(right, middle - 60, "S = Q Kᵀ of one tile (M, N):"),
        text(right, middle - 43, "made, used, forgotten"),
        text(right, middle - 8, "carried from tile to tile:"),
        text(right, middle + 11, "m (M,)  the largest score so far"),
        text(right, middle + 28, "z (M,)  the sum of 2^(S - m)"),
        text(right, middle + 45, "acc (M, D)  that times V"),
        text(left, top + side * tiles + 22, "S (T, T), of which only one tile at a time exists"),
    ]
    return drawing(660, top + side * tiles + 36, "The tiles of attention's forward", *parts)


def online(scores=SCORES, tile: int = TILE) -> list[dict]:
    """m, alpha and z after each tile of one row, in base 2 as the kernel has them."""
    m, z, steps = -math.inf, 0.0, []
    for first in range(0, len(scores), tile):
        s = scores[first : first + tile]
        m_new = max(m, *s)
        alpha = 2.0 ** (m - m_new)
        z = z * alpha + sum(2.0 ** (one - m_new) for one in s)
        m = m_new
        steps.append({"m": m, "alpha": alpha, "z": z})
    return steps


def online_softmax() -> str:
    """A row's scores tile by tile, and under each tile what the row carries on."""
    wide, unit, floor, left = 34, 22, 170, 150
    parts = [text(8, 20, "one row of scores S, in tiles of 4 keys")]
    for place, score in enumerate(SCORES):
        x = left + place * wide + place // TILE * 40
        parts.append(box(x, floor - unit * score, wide - 4, max(unit * score, 1), "plain"))
        parts.append(text(x + 11, floor + 16, f"{score:.0f}", class_="small"))
    said = ("largest so far, m", "alpha, times the old z", "sum of 2^(S - m), z")
    parts += [text(8, floor + 44 + 20 * line, words) for line, words in enumerate(said)]
    for number, step in enumerate(online()):
        x = left + number * (TILE * wide + 40)
        top = floor - unit * step["m"]
        tile = {"x1": x - 6, "x2": x + TILE * wide, "y1": top, "y2": top}
        parts.append(tag("line", **tile, class_="line", stroke_dasharray="4 3"))
        figures = (f"{step['m']:.0f}", f"{step['alpha']:g}", f"{step['z']:.4g}")
        parts += [text(x, floor + 44 + 20 * line, one) for line, one in enumerate(figures)]
    largest, total = online()[-1]["m"], online()[-1]["z"]
    weight = 2.0 ** (largest - largest) / total
    ending = f"after the last tile: weight of the largest = 2^0 / {total:.4g} = {weight:.3f}"
    parts.append(text(8, floor + 114, ending))
    return drawing(680, floor + 130, "The online softmax of one row", *parts)


def causal_skip(T: int = 1024, M: int = 128, N: int = 64) -> str:
    """Which tiles of a causal S are computed, and which of them need the mask."""
    grid, side = kinds(T, M, N), 22
    high, left, top = 2 * side, 70, 40
    parts = [text(left, 20, f"T = {T}: tiles of M = {M} rows and N = {N} keys")]
    for line, row in enumerate(grid):
        y = top + high * line
        parts.append(text(8, y + 27, f"row {line * M}", class_="small"))
        parts += [box(left + side * c, y, side, high, kind) for c, kind in enumerate(row)]
    every = [kind for row in grid for kind in row]
    right = left + side * len(grid[0]) + 20
    legend = (
        ("plain", "computed, no mask"),
        ("masked", "computed, with the mask"),
        ("skipped", "never computed"),
    )
    for place, (kind, words) in enumerate(legend):
        y = top + 34 * place
        parts.append(box(right, y, 20, 20, kind))
        parts.append(text(right + 28, y + 15, f"{every.count(kind)}: {words}"))
    parts.append(text(right, top + 130, "The last rows have the most tiles"))
    parts.append(text(right, top + 147, "and are begun first."))
    bottom = top + high * len(grid)
    return drawing(right + 230, bottom + 12, "The tiles that a causal mask leaves", *parts)


PICTURES = {"tiling": tiling, "online-softmax": online_softmax, "causal-skip": causal_skip}


def main(arguments: list[str] | None = None, folder: Path = FOLDER) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report.walk_pictures", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    check = parser.parse_args(arguments).check
    drawn = {folder / f"{name}.svg": picture() for name, picture in PICTURES.items()}
    stale = [path for path, svg in drawn.items() if not path.exists() or path.read_text() != svg]
    if not check:
        folder.mkdir(parents=True, exist_ok=True)
        for path in stale:
            path.write_text(drawn[path])
    print(", ".join(path.name for path in stale) or "current")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
