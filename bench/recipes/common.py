"""What the recipes share: options, running train.py, and the JSON file of a table."""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

from bench import results
from gpt.runs.metrics import read_metrics

SEEDS = (1337, 1338, 1339)  # of a median
NOT_REACHED = "not reached"


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser with --json; the first line of `doc` is its description."""
    made = argparse.ArgumentParser(description=doc.partition("\n")[0])
    made.add_argument("--json", type=Path, metavar="FILE", help="write the rows of the table to it")
    return made


def write(
    table: str, rows: list[dict], path: Path | None, machine: str = "", more: dict | None = None
) -> None:
    """Write the result file of a table, if a path is given. more: what else it holds."""
    if path:
        head = {"schema": results.SCHEMA, "table": table, "date": date.today().isoformat()}
        head |= {"commit": results.commit(), "machine": machine or describe_machine()}
        results.write(path, head | (more or {}) | {"rows": rows})


def describe_machine() -> str:
    """The processor, the number of threads if it is set, and the versions."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    processor = names[0] if names else platform.processor()
    threads = os.environ.get("OMP_NUM_THREADS")
    threads = f"{threads} thread{'s' * (threads != '1')} on " if threads else ""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{threads}{os.cpu_count()} cores of {processor}, {versions}"


def run_script(*arguments, folder: Path = results.REPOSITORY) -> str:
    """The output of `python ARGUMENTS` in a folder; exits with the end of its errors on failure."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arguments[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def evaluations(folder: Path) -> list[dict]:
    """The lines of a run's metrics that have a validation loss."""
    return [line for line in read_metrics(folder) if "val_loss" in line]


def show(row: dict) -> dict:
    print(json.dumps(row), flush=True)
    return row


def median(name: str, rows: list[dict]) -> dict:
    """The median of every column, with the smallest and the largest value if they differ."""

    def cell(values: list):
        if len(set(values)) == 1:
            return values[0]
        if NOT_REACHED in values:
            return NOT_REACHED
        return f"{statistics.median(values)} ({min(values)} to {max(values)})"

    columns = {key: cell([row[key] for row in rows]) for key in rows[0] if key != "run"}
    return {"run": name} | columns


def matmul_gflops() -> int:
    """The median speed of bf16 products of 1,024 x 1,024 matrices, over a second."""
    x, seconds = torch.randn(1024, 1024).bfloat16(), []
    while sum(seconds) < 1:
        began = time.perf_counter()
        x @ x
        seconds.append(time.perf_counter() - began)
    return round(2 * 1024**3 / statistics.median(seconds) / 1e9)
