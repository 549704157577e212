"""Measured figures as tables and pictures: nothing in the README or the docs is typed by hand.

    python -m bench.report            write the tables and draw the pictures
    python -m bench.report --check    exit 1 where a table or a picture is not that of its JSON
    python -m bench.report RUN        one HTML page about the run in that folder, written into it

Figures come from bench/results/*.json (`make prove` writes them, one file per card and date; what
was measured last counts) and from bench/ledger/ledger.json. A table stands in README.md or docs/*.md
between `<!-- begin NAME -->` and `<!-- end NAME -->`; the names are those of `bench.report.tables.TABLES`
and `PROGRAMS`, and `pictures`.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

from bench import results_file
from bench.report import curves, pictures, run_report, two_cores
from bench.report.tables import NOT_MEASURED, PROGRAMS, TABLES, of_program
from gpt import UserError

PICTURES = Path("docs") / "pictures"
WITHOUT_A_CARD = {"two-cores.svg": two_cores.picture, "finetune.svg": curves.picture}
MARKER = re.compile(r"<!-- (begin|end) ([\w-]+) -->")


def main(arguments: list[str] | None = None, root: Path = results_file.REPOSITORY) -> int:
    options = _options(arguments)
    if options.run:
        return _report_run(options.run, options.prompt, root)
    results, ledger = results_file.of_every_card(root / "bench" / "results"), read_ledger(root)
    try:
        stale = [path for path in documents(root) if not _is_current(path, root, results, ledger)]
    except ValueError as error:
        print(error)
        return 1
    for result in results:
        drawn = pictures.paths(root / PICTURES, result).values()
        stale += [path for path in drawn if not pictures.is_current(path, result)]
    programs = results_file.of_programs(root / "bench" / "results")
    drawings = {root / PICTURES / name: draw(programs) for name, draw in WITHOUT_A_CARD.items()}
    stale += [path for path, drawn in drawings.items() if drawn and drawn != _text(path)]
    names = ", ".join(str(path.relative_to(root)) for path in stale)
    if options.check:
        print(f"not what bench/ says: {names}; run python -m bench.report" if stale else "current")
        return 1 if stale else 0
    for result in results:
        pictures.draw(root / PICTURES, result)
    for path, drawn in drawings.items():
        if drawn:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(drawn)
    for path in documents(root):
        path.write_text(fill(path.read_text(), path, root, results, ledger))
    print(f"written: {names}" if stale else "everything was current")
    return 0


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _report_run(folder: Path, prompt: str | None, root: Path) -> int:
    newest = read_ledger(root)
    try:
        print(f"written: {run_report.write(folder, prompt, newest[1] if newest else [])}")
    except (UserError, OSError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    return 0


def documents(root: Path) -> list[Path]:
    """Every Markdown file that has room for a table."""
    paths = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return [path for path in paths if path.exists() and MARKER.search(path.read_text())]


def fill(text: str, path: Path, root: Path, results: list[dict], ledger) -> str:
    """`text` with every table between its markers made anew."""
    pieces, place, opened = [], 0, None
    for marker in MARKER.finditer(text):
        kind, name = marker.groups()
        if (kind == "begin") != (opened is None) or opened not in (None, name):
            raise ValueError(f"{path}: `{marker.group()}` does not fit the marker before it")
        if kind == "begin":
            pieces.append(text[place : marker.end()])
        else:
            pieces.append(f"\n{table(name, path, root, results, ledger)}\n")
            place = marker.start()
        opened = name if kind == "begin" else None
    if opened is not None:
        raise ValueError(f"{path}: `<!-- begin {opened} -->` has no `<!-- end {opened} -->`")
    return "".join([*pieces, text[place:]])


def table(name: str, path: Path, root: Path, results: list[dict], ledger) -> str:
    if name == "pictures":
        return _links(path, root, results)
    if name in PROGRAMS:
        return of_program(results_file.of_programs(root / "bench" / "results").get(name))
    if name not in TABLES:
        known = ", ".join([*TABLES, *PROGRAMS, "pictures"])
        raise ValueError(f"{path}: there is no table {name!r}; the tables are {known}")
    return TABLES[name](results, ledger)


def _links(path: Path, root: Path, results: list[dict]) -> str:
    lines = []
    for result in results:
        for name, picture in pictures.paths(root / PICTURES, result).items():
            target = os.path.relpath(picture, path.parent)
            lines.append(f"![{result['card']['name']}: {name}]({target})")
    return "\n\n".join(lines) or f"- pictures: {NOT_MEASURED}"


def _is_current(path: Path, root: Path, results: list[dict], ledger) -> bool:
    text = path.read_text()
    return text == fill(text, path, root, results, ledger)


def read_ledger(root: Path) -> tuple[str, list[dict]] | None:
    """The newest triton in the ledger, and its rows."""
    path = root / "bench" / "ledger.json"
    if not path.exists():
        return None
    versions = json.loads(path.read_text())
    newest = max(versions, key=lambda text: [int(part) for part in re.findall(r"\d+", text)])
    return newest, versions[newest]


def _options(arguments: list[str] | None):
    summary = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=summary)
    parser.add_argument("run", nargs="?", type=Path, help="the folder of a run: report on it alone")
    parser.add_argument("--prompt", help="the text whose attention maps a run's page shows")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
