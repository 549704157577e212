"""The pictures of the README and the docs, drawn by matplotlib from measured results.

A digest of what is drawn is kept inside the SVG, which is how `--check` finds a picture that is out
of date: the SVG text itself differs between versions of matplotlib.
"""

import hashlib
import inspect
import io
import json
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from bench.report.tables import HEADLINES, peer_speedup, rows_of
from bench.results import stem
from bench.workloads import timed
from gpt.files import write_whole


class Bars(NamedTuple):
    """A picture with one part a title, in each a bar for every label."""

    parts: dict[str, dict[str, float]]  # title -> label -> value

    @property
    def digest(self) -> str:
        text = json.dumps([inspect.getsource(type(self)), self.parts])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def is_current(self, path: Path) -> bool:
        return path.exists() and self.digest in path.read_text()

    def save(self, path: Path) -> None:
        counts = [max(1, len(bars)) for bars in self.parts.values()]
        figure = Figure(figsize=(7, 0.35 * sum(counts) + 0.8 * len(counts)), layout="constrained")
        grid = figure.subplots(len(counts), squeeze=False, height_ratios=counts)
        for (axes,), (title, bars) in zip(grid, self.parts.items(), strict=True):
            drawn = axes.barh(list(bars), list(bars.values()), color="#4477aa")
            axes.bar_label(drawn, fmt="{:g}", padding=4)
            axes.invert_yaxis()
            axes.margins(x=0.12)
            axes.set_title(title, loc="left", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"svg.hashsalt": "gpt-kernels"}):  # reproducible ids
            content = io.BytesIO()
            about = {"Date": None, "Source": self.digest}
            figure.savefig(content, format="svg", metadata=about)
        write_whole(path, content.getvalue())


def pictures(results: list[dict], recipes: dict[str, dict]) -> dict[str, Bars]:
    """File name -> picture, for everything that was measured."""
    found = {}
    for result in results:
        bars = {}
        for label, case in HEADLINES:
            best = peer_speedup(rows_of(result["rows"], case, timed.passes(case)[-1]))
            bars |= {f"{label}, over {best[1]}": round(best[0], 2)} if best else {}
        title = f"Speedup over the fastest peer, all passes, {result['gpu']['name']}"
        found[f"{stem(result['gpu'])}-speedup.svg"] = Bars({title: bars})
    rows = {name: result["rows"] for name, result in recipes.items()}
    if {"quickstart", "decode"} <= rows.keys():
        found["two-cores.svg"] = two_cores(rows["quickstart"][-1], rows["decode"])
    return found


def two_cores(race: dict, decoders: list[dict]) -> Bars:
    """The picture of the README: seconds to nanoGPT's loss, and tokens per second."""
    lecture = [row for row in decoders if (row["model"], row["batch"]) == ("lecture", 1)]
    slowest, fastest = (end(lecture, key=lambda row: row["tokens/s"]) for end in (min, max))
    return Bars(
        {
            f"Training time to nanoGPT's final loss, {race['nanoGPT final loss']} (s)": {
                "nanoGPT's CPU recipe": race["nanoGPT, s"],
                "make train": race["quickstart, s to that loss"],
            },
            "Generation, the lecture's model, batch 1 (tokens/s)": {
                row["implementation"]: row["tokens/s"] for row in (slowest, fastest)
            },
        }
    )
