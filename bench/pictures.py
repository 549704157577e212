"""Pictures of one card's figures: against the best peer, how far from the ceilings, by rungs."""

import hashlib
import json
from pathlib import Path

from bench import targets, timed
from bench.peers import OURS
from bench.tables import HEADLINES, rungs, times_best

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
    names = ("speedup", "roofline", "ladder") if rungs(result) else ("speedup", "roofline")
    return {name: folder / f"{stem}-{name}.svg" for name in names}


def is_current(path: Path, result: dict) -> bool:
    return path.exists() and digest(result) in path.read_text()


def draw(folder: Path, result: dict) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "gpt-kernels"  # the same picture from the same figures
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in paths(folder, result).items():
        figure = {"speedup": speedup, "roofline": roofline, "ladder": ladder}[name](result)
        figure.savefig(path, metadata={"Date": None, "Source": digest(result)})


def speedup(result: dict):
    """Bars: how many times faster than the best peer, per operation and pass."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 * len(HEADLINES) + 1), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(timed.PASSES)
    for index, direction in ((0, "forward"), (1, "backward"), (2, "both"), (1, timed.STEP)):
        for place, (_, case) in enumerate(HEADLINES):
            best = times_best(targets.rows_of(result["rows"], case, direction))
            if best is not None:
                y = place + height * (index - 1)
                axes.barh(y, best[0], height, color=COLOURS[direction])
                axes.text(best[0], y, f" {best[1]}", va="center", fontsize=6)
        axes.barh(0, 0, color=COLOURS[direction], label=direction)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(HEADLINES)), [label for label, _ in HEADLINES])
    axes.invert_yaxis()
    axes.set_xlabel(f"times faster than the best peer (named), {result['card']['name']}")
    axes.legend(frameon=False, fontsize=8)
    return figure


def roofline(result: dict):
    """Left: what moves bytes, against the copy's rate; right: what multiplies, under its roof."""
    from matplotlib.figure import Figure

    ours = [row for row in result["rows"] if row["rival"] == OURS]
    copy = result["ceilings"]["copy_bytes_per_second"]
    matmul = result["ceilings"]["matmul_flops_per_second"]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    bars, roof = figure.subplots(1, 2)
    moving = [row for row in ours if "tflop_s" not in row]
    labels = [f"{row['operation']} {row['shape']}, {row['pass']}" for row in moving]
    colours = [COLOURS[row["pass"]] for row in moving]
    bars.barh(range(len(moving)), [row["gb_s"] / 1e3 for row in moving], color=colours)
    bars.axvline(copy / 1e12, color="black", linewidth=0.8)
    bars.set_yticks(range(len(moving)), labels, fontsize=5)
    bars.invert_yaxis()
    bars.set_xlabel("TB/s; the line is a copy")
    for row in ours:
        if "tflop_s" in row:
            intensity = row["tflop_s"] * 1e12 / (row["gb_s"] * 1e9)
            roof.plot(intensity, row["tflop_s"], "o", color=COLOURS[row["pass"]], markersize=4)
            roof.annotate(row["operation"], (intensity, row["tflop_s"]), fontsize=5)
    ridge = matmul / copy
    xs = [ridge / 64, ridge, ridge * 64]
    roof.plot(xs, [min(copy * x, matmul) / 1e12 for x in xs], color="black", linewidth=0.8)
    roof.set_xscale("log")
    roof.set_yscale("log")
    roof.set_xlabel("operations per byte that must be moved")
    roof.set_ylabel("TFLOP/s; the line is the measured roof")
    figure.suptitle(result["card"]["name"])
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
