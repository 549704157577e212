"""Result files: measurements as JSON, one file per GPU and date, written by `make prove`.

{"schema": 2, "gpu": {...}, "date": "2026-11-21", "ceilings": {...}, "stages": {name: {...}},
"rows": [{...}]}. Every stage and row has the commit and date of its measurement. Programs of
`bench.recipes` write {"schema": 2, "table": the name of their table in the README, "date": ...,
"machine": ..., "commit": ..., "rows": [{...}]}.
"""

import contextlib
import functools
import json
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch

from gpt import UserError
from gpt.files import read_json, write_whole

SCHEMA = 2
REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results"
KEY = ("operation", "shape", "precision", "pass", "implementation")  # identifies a row


def gpu() -> dict:
    """The current GPU and the versions of the software."""
    import triton

    properties, driver = torch.cuda.get_device_properties(0), Path("/proc/driver/nvidia/version")
    version = re.search(r"\b\d+\.[\d.]+", driver.read_text() if driver.exists() else "")
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 1e9),
        "driver": version[0] if version else "unknown",
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
    }


def commit() -> str:
    """The commit of this checkout, followed by "+" if files differ from it, or "unknown"."""
    command = ["git", "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return run.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # a copy without .git: pass --commit


def stem(gpu: dict) -> str:
    """nvidia-h200"""
    return "-".join(gpu["name"].lower().split())


def read(path: Path) -> dict:
    result = read_json(path)
    if result.get("schema") != SCHEMA or not isinstance(result.get("date"), str):
        raise UserError(f"{path} has no date, or not schema {SCHEMA}; measure again")
    return result


@contextlib.contextmanager
def intact(path: Path) -> Iterator[None]:
    """A context in which what the file `path` lacks is a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"{path} is damaged ({type(error).__name__}: {error})"
        raise UserError(f"{problem}; measure again, or remove it") from None


def write(path: Path, result: dict) -> None:
    """Write JSON with one row per line, so that a changed row is a changed line of the diff."""
    rows = ",\n".join(json.dumps(row) for row in result["rows"])
    rest = {key: value for key, value in result.items() if key != "rows"}
    text = json.dumps(rest, indent=1).removesuffix("\n}")
    write_whole(path, f'{text},\n "rows": [\n{rows}\n]}}\n'.encode())


def merge(earlier: dict, later: dict) -> dict:
    """Both results; `later` replaces what it has measured again.

    If the GPU or a version has changed, the earlier result is dropped.
    """
    if earlier["gpu"] != later["gpu"]:
        return later
    rows = {tuple(row[key] for key in KEY): row for row in (*earlier["rows"], *later["rows"])}
    stages = earlier["stages"] | later["stages"]
    return later | {"stages": stages, "rows": list(rows.values())}


def by_gpu(folder: Path = RESULTS) -> list[dict]:
    """The merged results of each GPU, sorted by its name."""
    found: dict[str, list[dict]] = {}
    for result in _oldest_first(folder):
        if "gpu" in result:
            found.setdefault(result["gpu"]["name"], []).append(result)
    return [functools.reduce(merge, found[name]) for name in sorted(found)]


def by_table(folder: Path = RESULTS) -> dict[str, dict]:
    """The newest result of each program of `bench.recipes`, by the name of its table."""
    return {result["table"]: result for result in _oldest_first(folder) if "table" in result}


def _oldest_first(folder: Path) -> list[dict]:
    return sorted(map(read, folder.glob("*.json")), key=lambda result: result["date"])
