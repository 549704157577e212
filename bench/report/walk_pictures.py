"""The pictures of docs/walk.md: the tiles of attention, and the state of the online softmax.

Their numbers are computed here at small sizes by the rules of `kernels/flash_attention`.
"""

import math
from collections import Counter

from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

COLOURS = {"skipped": "#eeeeee", "plain": "#7fb0dd", "masked": "#ddaa33", "now": "#4477aa"}
SCORES = (1.0, 3.0, 0.0, 2.0, 2.0, 5.0, 1.0, 4.0, 6.0, 2.0, 4.0, 3.0)  # one row of S, in base 2
TILE = 4  # keys


def kinds(T: int, M: int, N: int) -> list[list[str]]:
    """What the causal kernel does with each tile of M rows and N keys."""
    grid = []
    for row in range(0, T, M):
        grid.append([])
        for key in range(0, T, N):
            masked = key + N > row + 1  # the first row does not see every key of the tile
            computed = "masked" if masked else "plain"
            grid[-1].append("skipped" if key >= row + M else computed)
    return grid


def online(scores=SCORES, tile: int = TILE) -> list[dict[str, float]]:
    """m, alpha and z after each tile of one row, in base 2 like the kernel."""
    m, z, states = -math.inf, 0.0, []
    for first in range(0, len(scores), tile):
        s = scores[first : first + tile]
        m_new = max(m, *s)
        alpha = 2.0 ** (m - m_new)
        z = z * alpha + sum(2.0 ** (score - m_new) for score in s)
        m = m_new
        states.append({"m": m, "alpha": alpha, "z": z})
    return states


def draw_tiles(size, grid: list[list[str]], labels: dict[str, str], loc: str) -> Axes:
    """A figure of `size` whose axes are a grid of tiles, with a legend at `loc`."""
    axes = Figure(figsize=size, layout="constrained").subplots()
    names, colours = list(COLOURS), ListedColormap(list(COLOURS.values()))
    numbers = [[names.index(kind) for kind in row] for row in grid]
    axes.pcolormesh(numbers, cmap=colours, vmin=0, vmax=len(names) - 1, edgecolors="white")
    axes.invert_yaxis()
    handles = [Patch(color=COLOURS[kind], label=label) for kind, label in labels.items()]
    axes.figure.legend(handles=handles, loc=loc, frameon=False)
    return axes


def tiling() -> Figure:
    """One program: M rows of Q, and the tiles of K and V one after the other."""
    tiles, row, now = 8, 5, 3
    line = ["plain"] * now + ["now"] + ["skipped"] * (tiles - now - 1)
    grid = [line if place == row else ["skipped"] * tiles for place in range(tiles)]
    labels = {"plain": "tiles already used", "now": "tile in progress"}
    axes = draw_tiles((7.5, 4), grid, labels, "upper right")
    axes.set(title="Tiles of the scores S (T, T) in attention's forward pass", aspect="equal")
    axes.set(xlabel="K, V: tiles of N keys, in order", ylabel="Q: one program per M rows")
    axes.set(xticks=[], yticks=[row + 0.5], yticklabels=["this program"])
    state = (
        "S = Q Kᵀ of one tile, (M, N):\ncomputed, used, discarded\n\n"
        "carried from tile to tile:\nm (M,)  the largest score so far\n"
        "z (M,)  the sum of 2^(S - m)\nacc (M, D)  the weighted sum of V"
    )
    axes.text(tiles + 0.4, row - 0.5, state, va="center", linespacing=1.5)
    return axes.figure


def online_softmax(states: list[dict[str, float]]) -> Figure:
    """The scores of one row by tiles, and the state after each tile."""
    axes = Figure(figsize=(7.5, 4.2), layout="constrained").subplots()
    places, labels = [], []
    for number, state in enumerate(states):
        first = number * (TILE + 1)
        axes.bar(range(first, first + TILE), SCORES[number * TILE :][:TILE], color="#7fb0dd")
        axes.hlines(state["m"], first - 0.6, first + TILE - 0.4, linestyles="--", color="#888888")
        places.append(first + (TILE - 1) / 2)
        labels.append("m = {m:g}\nalpha = {alpha:g}\nz = {z:.4g}".format(**state))
    z = states[-1]["z"]
    axes.set(title="The online softmax of one row of scores S, in tiles of 4 keys")
    axes.set(ylabel="score S (base 2)", ylim=(0, 7))
    axes.set_xticks(places, labels)
    axes.set_xlabel(
        "after each tile: m, the largest score so far (dashed); z = alpha z + sum of 2^(S - m)\n"
        f"softmax weight of the largest score: 2^0 / z = 1 / {z:.4g} = {1 / z:.3f}"
    )
    return axes.figure


def causal_skip(T: int, M: int, N: int, grid: list[list[str]]) -> Figure:
    """The tiles of a causal S that are computed, and those that need the mask."""
    count = Counter(kind for row in grid for kind in row)
    labels = {
        "plain": f"{count['plain']} tiles computed without a mask",
        "masked": f"{count['masked']} tiles computed with the mask",
        "skipped": f"{count['skipped']} tiles not computed",
    }
    axes = draw_tiles((8, 4), grid, labels, "outside right center")
    axes.set(title=f"Tiles of causal attention, T = {T}, M = {M} rows, N = {N} keys")
    axes.set(xlabel="first key of the tile", ylabel="first row of the tile")
    axes.set_xticks(range(0, T // N, 4), range(0, T, 4 * N))
    axes.set_yticks(range(T // M), range(0, T, M))
    return axes.figure


CAUSAL = (1024, 128, 64)
PICTURES = {
    "tiling.svg": (tiling, []),
    "online-softmax.svg": (online_softmax, [online()]),
    "causal-skip.svg": (causal_skip, [*CAUSAL, kinds(*CAUSAL)]),
}
