"""The pictures of the README and the docs, drawn by matplotlib from measured results.

`pictures` lists every picture as a function and its inputs. A digest of both is kept inside the
SVG, which is how `--check` finds a picture that is out of date: the SVG text itself differs
between versions of matplotlib.
"""

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from bench.report.tables import HEADLINES, peer_speedup, rows_of
from bench.results import stem
from bench.workloads import timed

# Tol's bright
COLOURS = {"forward": "#4477aa", "backward": "#ee6677", "both": "#228833", "step": "#aa3377"}


class Picture(NamedTuple):
    draw: Callable[..., Figure]
    inputs: list[Any]  # JSON

    @property
    def digest(self) -> str:
        text = json.dumps([inspect.getsource(self.draw), self.inputs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def is_current(self, path: Path) -> bool:
        return path.exists() and self.digest in path.read_text()

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"svg.hashsalt": "gpt-kernels"}):  # reproducible ids
            self.draw(*self.inputs).savefig(path, metadata={"Date": None, "Source": self.digest})


def pictures(results: list[dict], recipes: dict[str, dict]) -> dict[str, Picture]:
    """File name -> picture, for everything that was measured."""
    found = {}
    for result in results:
        inputs = [result["gpu"]["name"], result["rows"]]
        found[f"{stem(result['gpu'])}-speedup.svg"] = Picture(speedup, inputs)
    rows = {name: result["rows"] for name, result in recipes.items()}
    if {"quickstart", "decode"} <= rows.keys():
        found["two-cores.svg"] = Picture(two_cores, [rows["quickstart"][-1], rows["decode"]])
    return found


def speedup(gpu: str, rows: list[dict]) -> Figure:
    """Bars: the speedup over the fastest peer, per operation and pass."""
    axes = Figure(figsize=(8, 0.5 * len(HEADLINES) + 1), layout="constrained").subplots()
    height = 0.8 / len(timed.PASSES)
    for index, direction in ((0, "forward"), (1, "backward"), (2, "both"), (1, timed.STEP)):
        for place, (_, case) in enumerate(HEADLINES):
            best = peer_speedup(rows_of(rows, case, direction))
            if best is not None and direction in timed.passes(case):
                y = place + height * (index - 1)
                axes.barh(y, best[0], height, color=COLOURS[direction])
                axes.text(best[0], y, f" {best[1]}", va="center", fontsize=6)
        axes.barh(0, 0, color=COLOURS[direction], label=direction)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(HEADLINES)), [label for label, _ in HEADLINES])
    axes.invert_yaxis()
    axes.margins(x=0.15)  # for the name behind the longest bar
    axes.set(title=f"Speedup of the Triton kernels, {gpu}")
    axes.set_xlabel("time of the fastest peer (named) / time of the Triton kernel")
    axes.legend(frameon=False, fontsize=8)
    return axes.figure


def two_cores(race: dict, decoders: list[dict]) -> Figure:
    """Bars of the README: seconds to nanoGPT's loss, and tokens per second."""
    lecture = [row for row in decoders if (row["model"], row["batch"]) == ("lecture", 1)]
    slowest, fastest = (end(lecture, key=lambda row: row["tokens/s"]) for end in (min, max))
    groups = {
        f"Training time to nanoGPT's final loss, {race['nanoGPT final loss']} (s)": {
            "nanoGPT's CPU recipe": race["nanoGPT, s"],
            "make train": race["quickstart, s to that loss"],
        },
        "Generation, the lecture's model, batch 1 (tokens/s)": {
            row["implementation"]: row["tokens/s"] for row in (slowest, fastest)
        },
    }
    figure = Figure(figsize=(7, 3), layout="constrained")
    for axes, (title, bars) in zip(figure.subplots(len(groups)), groups.items(), strict=True):
        drawn = axes.barh(list(bars), list(bars.values()), color=["#b9d3ea", "#4477aa"])
        axes.bar_label(drawn, fmt="{:g}", padding=4)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
