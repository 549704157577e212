"""Pictures of one card's figures: against the best peer, how far from the ceilings, by rungs."""

import hashlib
import json
from pathlib import Path

from bench import workloads
from bench.baselines import OURS
from bench.report import targets
from bench.report.tables import HEADLINES, rungs, times_best

COLOURS = {  # Tol's bright
    "forward": "#4477aa",
    "backward": "#ee6677",
    "both": "#228833",
    "step": "#aa3377",
}


def digest(result: dict) -> str:
    """What a picture was drawn from; it stands inside the picture."""
    figures = [result["card"], result["ceilings"], result["rows"], rungs(result)]
    text = json.dumps(figures, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def paths(folder: Path, result: dict) -> dict[str, Path]:
    stem = "-".join(result["card"]["name"].lower().split())
    names = ("speedup", "ceiling", "ladder") if rungs(result) else ("speedup", "ceiling")
    return {name: folder / f"{stem}-{name}.svg" for name in names}


def is_current(path: Path, result: dict) -> bool:
    return path.exists() and digest(result) in path.read_text()


def draw(folder: Path, result: dict) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "gpt-kernels"  # the same picture from the same figures
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in paths(folder, result).items():
        figure = {"speedup": speedup, "ceiling": ceiling, "ladder": ladder}[name](result)
        figure.savefig(path, metadata={"Date": None, "Source": digest(result)})


def speedup(result: dict):
    """Bars: how many times faster than the best peer, per operation and pass."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 * len(HEADLINES) + 1), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(workloads.PASSES)
    for index, direction in ((0, "forward"), (1, "backward"), (2, "both"), (1, workloads.STEP)):
        for place, (_, case) in enumerate(HEADLINES):
            best = times_best(targets.rows_of(result["rows"], case, direction))
            if best is not None and direction in workloads.passes(case):
                y = place + height * (index - 1)
                axes.barh(y, best[0], height, color=COLOURS[direction])
                axes.text(best[0], y, f" {best[1]}", va="center", fontsize=6)
        axes.barh(0, 0, color=COLOURS[direction], label=direction)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(HEADLINES)), [label for label, _ in HEADLINES])
    axes.invert_yaxis()
    axes.margins(x=0.15)  # for the name behind the longest
    axes.set_xlabel(f"times faster than the best peer (named), {result['card']['name']}")
    axes.legend(frameon=False, fontsize=8)
    return figure


def ceiling(result: dict):
    """Bars: the share of what this GPU does at best, copying or multiplying, over both passes."""
    from matplotlib.figure import Figure

    shown = []
    for case in workloads.CARD:
        rows = targets.rows_of(result["rows"], case, workloads.passes(case)[-1])
        shown += [row for row in rows if row["rival"] == OURS]
    figure = Figure(figsize=(8, 0.22 * len(shown) + 1), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(shown):
        colour = COLOURS["both" if "tflop_s" in row else "forward"]
        axes.barh(place, 100 * row["ceiling"], color=colour)
    names = [f"{row['operation']} {row['shape']}" for row in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    name = result["card"]["name"]
    axes.set_xlabel(f"% of the measured ceiling, forward and backward or a step, {name}")
    for label, colour in (("of a copy's bytes/s", "forward"), ("of a product's FLOP/s", "both")):
        axes.barh(0, 0, color=COLOURS[colour], label=label)
    axes.legend(frameon=False, fontsize=8)
    return figure


def ladder(result: dict):
    """An operation each: the share of the ceiling that every rung of docs/ladder reaches."""
    from matplotlib.figure import Figure

    operations = list(dict.fromkeys(row["operation"] for row in rungs(result)))
    figure = Figure(figsize=(4 * len(operations), 3), layout="constrained")
    panels = figure.subplots(1, len(operations), squeeze=False)[0]
    for axes, operation in zip(panels, operations, strict=True):
        rows = [row for row in rungs(result) if row["operation"] == operation]
        names = list(dict.fromkeys(row["rival"] for row in rows))
        for row in rows:
            y = names.index(row["rival"]) + (0.2 if row["pass"] == "both" else -0.2)
            axes.barh(y, 100 * row["ceiling"], 0.4, color=COLOURS[row["pass"]])
        for direction in dict.fromkeys(row["pass"] for row in rows):
            axes.barh(0, 0, color=COLOURS[direction], label=direction)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"{operation} {rows[0]['shape']}, % of the ceiling", fontsize=7)
        axes.legend(frameon=False, fontsize=7)
    figure.suptitle(result["card"]["name"])
    return figure
