"""Write the tables and pictures of the README and the docs from measured results.

    python -m bench.report            write every table and picture that is out of date
    python -m bench.report --check    change nothing; exit 1 if one is out of date

Results are the files in bench/results/ (`make prove` and the recipes write them; the newest
measurement counts) and bench/ledger/ledger.json. A table stands in README.md or docs/*.md between
`<!-- begin NAME -->` and `<!-- end NAME -->`; `bench.report.tables` lists the names.
"""

import argparse
import re
import sys
from pathlib import Path

from bench.report import tables
from bench.report.pictures import Picture, pictures
from bench.results import REPOSITORY, by_gpu, by_table, intact, merge, read
from gpt import UserError
from gpt.files import read_json, write_whole

PICTURES = Path("docs", "pictures")
BLOCK = re.compile(r"<!-- begin ([\w-]+) -->\n(.*?)<!-- end \1 -->", re.DOTALL)
MARKER = re.compile(r"<!-- (?:begin|end) [\w-]+ -->")


def main(arguments: list[str] | None = None, root: Path = REPOSITORY) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if something is out of date")
    options = parser.parse_args(arguments)
    try:
        return update(root, options.check)
    except (UserError, OSError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2


def update(root: Path, check: bool) -> int:
    """Write what is out of date, or with `check` only list it. Returns the exit code."""
    folder = root / "bench" / "results"
    for path in folder.glob("*.json"):
        _check(path)
    gpus, recipes = by_gpu(folder), by_table(folder)
    path = root / "bench" / "ledger" / "ledger.json"
    versions = read_json(path) if path.exists() else {}
    newest = max(versions, key=lambda one: [*map(int, re.findall(r"\d+", one))], default=None)
    ledger = newest and (newest, versions[newest])
    with intact(path):
        for name in tables.LEDGER_TABLES:
            tables.render(name, [], {}, ledger)
    with intact(folder / "laptop-*.json"):  # in pictures
        shown = pictures(gpus, recipes)
    drawn = {root / PICTURES / name: one for name, one in shown.items()}
    stale = {path: picture for path, picture in drawn.items() if not picture.is_current(path)}

    def table(block: re.Match) -> str:
        text = tables.render(block[1], gpus, recipes, ledger)
        return f"<!-- begin {block[1]} -->\n{text}\n<!-- end {block[1]} -->"

    for path in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        before = path.read_text() if path.exists() else ""
        if 2 * len(BLOCK.findall(before)) != len(MARKER.findall(before)):
            raise UserError(f"{path}: the markers of a table are not a begin and an end in turn")
        after = BLOCK.sub(table, before)
        stale |= {path: after} if after != before else {}
    names = ", ".join(str(path.relative_to(root)) for path in stale)
    if check:
        print(f"out of date: {names}; run python -m bench.report" if stale else "up to date")
        return 1 if stale else 0
    for path, content in stale.items():
        if isinstance(content, Picture):
            content.save(path)
        else:
            write_whole(path, content.encode())
    print(f"wrote {names}" if stale else "up to date")
    return 0


def _check(path: Path) -> None:
    """Render all tables of one result file; a UserError that names it if it lacks something."""
    result = read(path)
    with intact(path):
        gpus = [merge(result, result)] if "gpu" in result else []
        recipes = {result["table"]: result} if "table" in result else {}
        pictures(gpus, recipes)
        for name in (*tables.NAMES, *recipes):
            tables.render(name, gpus, recipes, None)


if __name__ == "__main__":
    sys.exit(main())
