"""The pictures of the README and the docs, drawn by matplotlib from measured results.

A digest of what is drawn is kept inside the SVG, which is how `--check` finds a picture that is out
of date: the SVG text itself differs between versions of matplotlib.
"""

import hashlib
import inspect
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from bench.report.tables import HEADLINES, peer_speedup, rows_of
from bench.results import stem
from bench.workloads import timed
from gpt.files import write_whole


@dataclass
class Picture:
    """What is drawn; the method `draw` of each kind makes the figure."""

    @property
    def digest(self) -> str:
        text = json.dumps([inspect.getsource(type(self)), asdict(self)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def is_current(self, path: Path) -> bool:
        return path.exists() and self.digest in path.read_text()

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"svg.hashsalt": "gpt-kernels"}):  # reproducible ids
            content = io.BytesIO()
            about = {"Date": None, "Source": self.digest}
            self.draw().savefig(content, format="svg", metadata=about)
        write_whole(path, content.getvalue())


@dataclass
class Bars(Picture):
    """A bar for every label."""

    title: str
    bars: dict[str, float]  # label -> value

    def draw(self) -> Figure:
        figure = Figure(figsize=(7, 0.35 * max(1, len(self.bars)) + 0.8), layout="constrained")
        axes = figure.subplots()
        drawn = axes.barh(list(self.bars), list(self.bars.values()), color="#4477aa")
        axes.bar_label(drawn, fmt="{:g}", padding=4)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_title(self.title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        return figure


@dataclass
class Curves(Picture):
    """Validation losses in the course of training, and losses to be reached as dashed lines."""

    lines: dict[str, list[list[float]]]  # label -> [seconds, loss] each
    goals: dict[str, float]

    def draw(self) -> Figure:
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.subplots()
        for index, (label, points) in enumerate(self.lines.items()):
            minutes = [seconds / 60 for seconds, _ in points]
            axes.plot(minutes, [loss for _, loss in points], label=label, color=f"C{index}")
        for (label, loss), side in zip(self.goals.items(), ("bottom", "top"), strict=True):
            axes.axhline(loss, color="#777777", linewidth=0.8, linestyle="--")
            axes.text(0, loss, label, fontsize=8, va=side)
        axes.set(xlabel="minutes of training on a CPU", ylabel="validation loss")
        axes.set_ylim(1.4, 3.4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        return figure


def pictures(results: list[dict], recipes: dict[str, dict]) -> dict[str, Picture]:
    """File name -> picture, for everything that was measured."""
    found = {}
    for result in results:
        bars = {}
        for label, case in HEADLINES:
            best = peer_speedup(rows_of(result["rows"], case, timed.passes(case)[-1]))
            bars |= {f"{label}, over {best[1]}": round(best[0], 2)} if best else {}
        title = f"Speedup over the fastest peer, all passes, {result['gpu']['name']}"
        found[f"{stem(result['gpu'])}-speedup.svg"] = Bars(title, bars)
    if "laptop" in recipes:
        goals = {
            "1.4873: the lecture's run, on an A100": 1.4873,
            "1.4697: nanoGPT's best, on an A100": 1.4697,
        }
        found["laptop.svg"] = Curves(recipes["laptop"]["curves"], goals)
    return found
