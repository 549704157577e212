"""Measured figures as JSON: a file per card and date, which `make prove` writes.

{"schema": 1, "card": {...}, "date": "2026-11-21", "ceilings": {...}, "stages": {name: {...}},
"rows": [{...}]}: every stage and row says with which commit it was measured, and when. A row is
what `bench.compare.row` makes.
"""

import json
import platform
import subprocess
from pathlib import Path

import numpy
import torch

SCHEMA = 1
REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results"
KEY = ("operation", "shape", "precision", "pass", "rival")  # what tells one row from another


def card() -> dict:
    """The card that is there, and the versions that run on it."""
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 1e9),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
    }


def _driver() -> str:
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def commit() -> str:
    """The commit of this checkout, "+" behind it where files differ from it, or "unknown"."""
    try:
        head = _git("rev-parse", "--short=10", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # a copy of the files alone: name the commit with --commit


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def file_name(card_name: str, date: str) -> str:
    """nvidia-h200-2026-11-21.json"""
    return f"{'-'.join(card_name.lower().split())}-{date}.json"


def read(path: Path) -> dict:
    result = json.loads(path.read_text())
    if result.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} has schema {result.get('schema')}, this program reads {SCHEMA}: measure again"
        )
    return result


def write(path: Path, result: dict) -> None:
    """JSON with one row of figures on a line, so that a difference can be read."""
    rows = ",\n".join(json.dumps(row) for row in result["rows"])
    rest = {key: value for key, value in result.items() if key != "rows"}
    text = json.dumps(rest, indent=1).removesuffix("\n}")
    write_whole(path, f'{text},\n "rows": [\n{rows}\n]}}\n')


def write_whole(path: Path, text: str) -> None:
    """Write a file that is always there as a whole: the earlier one, or this one."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def add(earlier: dict, later: dict) -> dict:
    """Both runs: what `later` has measured again replaces the earlier.

    If the card or a version has changed in between, the earlier run counts no more.
    """
    if earlier["card"] != later["card"]:
        return later
    rows = {tuple(row[key] for key in KEY): row for row in (*earlier["rows"], *later["rows"])}
    stages = earlier["stages"] | later["stages"]
    return later | {"stages": stages, "rows": list(rows.values())}


def of_every_card(folder: Path = RESULTS) -> list[dict]:
    """Each card's results in one, what was measured last counting; sorted by the card's name."""
    found: dict[str, dict] = {}
    for result in _oldest_first(folder):
        if "card" in result:
            name = result["card"]["name"]
            found[name] = add(found[name], result) if name in found else result
    return [found[name] for name in sorted(found)]


def of_programs(folder: Path = RESULTS) -> dict[str, dict]:
    """What other programs have measured, the newest of each: {"schema": 1, "table": the name of
    its table in the README, "date": ..., "machine": ..., "commit": ..., "rows": [{...}]}."""
    return {result["table"]: result for result in _oldest_first(folder) if "table" in result}


def _oldest_first(folder: Path) -> list[dict]:
    return sorted(map(read, folder.glob("*.json")), key=lambda result: result["date"])
