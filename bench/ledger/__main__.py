"""The compiled-kernel ledger: what every kernel is made of, on cards that need not be there.

    python -m bench.ledger                     a table for people, of every kernel and family
    python -m bench.ledger --check             broken rules and unreviewed changes; exit 1
    python -m bench.ledger --write             accept the present state as bench/ledger/ledger.json
    python -m bench.ledger --loops             the hot loops, in cycles per pipe
    python -m bench.ledger --arch 90 --kernel layer_norm

It calls the operations of `bench.cases` on meta tensors, and whole steps of `bench.steps` on fake
ones, and compiles the launches that come out of `kernels.common.launch`. Figures belong to a version of
Triton, whose compiler makes them: by a version that the committed ledger does not hold, only the
rules are checked.
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
from pathlib import Path

from bench.cases import CASES, TOKENS, UPDATES
from bench.ledger.rules import changes, findings
from bench.ledger.table import loop_table, table
from bench.steps import STEPS
from kernels.common.launch import SHARED_MEMORY

COMMITTED = Path(__file__).with_name("ledger.json")
TARGETS = ("80", "90", "100", "120")  # sm_86 and sm_89 run sm_80's code
PROCESSES = 2  # a kernel takes 0.3 to 1 s of one core


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    import triton

    def covered(row):
        return row["target"] in options.arch and _is_wanted(row["key"], options.kernel)

    rows = collect(options.arch, options.kernel)
    committed = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {}
    seen = committed.get(triton.__version__)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.write:
        kept = [row for row in seen or () if not covered(row)]
        committed[triton.__version__] = _sorted([*kept, *rows])
        COMMITTED.write_text(_lines(committed))
        print(f"bench/ledger/ledger.json: {len(rows)} kernels by triton {triton.__version__}")
        if others := sorted(committed.keys() - {triton.__version__}):
            print(f"it also holds triton {', '.join(others)}: write those where they are installed")
        return 0
    if not options.check:
        print(loop_table(rows) if options.loops else table(rows))
        return 0
    found = [f"{row['target']} {row['key']}: {rule}" for row in rows for rule in findings(row)]
    if seen is None:
        known = " and ".join(committed) or "no version"
        print(
            f"triton {triton.__version__}: only the rules are checked, because "
            f"bench/ledger/ledger.json was written by {known}"
        )
    elif different := changes(rows, [row for row in seen if covered(row)]):
        found += [*different, "if the changes are meant: python -m bench.ledger --write"]
    print("\n".join(found) or f"{len(rows)} kernels break no rule")
    return 1 if found else 0


def collect(targets=TARGETS, kernels=(), cases=(*CASES, *UPDATES, *TOKENS, *STEPS)) -> list[dict]:
    """The rows of every kernel that the cases launch and whose name holds one of `kernels`."""
    jobs = [
        (target, [case for case in cases if case.operation == operation], kernels)
        for operation in dict.fromkeys(case.operation for case in cases)
        for target in targets
    ]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        parts = pool.starmap(_compile, jobs, chunksize=1)
    merged: dict[tuple, dict] = {}
    for row in (row for part in parts for row in part):
        kept = merged.setdefault((row["target"], row["key"]), row)
        for field in ("cases", "cards", "narrow"):  # two operations may launch one kernel
            kept[field] = sorted({*kept[field], *row[field]})
    return _sorted(merged.values())


def _compile(target: str, cases, kernels) -> list[dict]:
    os.environ.pop("TRITON_INTERPRET", None)  # read on import; what is interpreted is not compiled
    from bench.ledger import compiled

    target = compiled.parse_target(target)
    launched = (
        one
        for case in cases
        for card in target.cards
        for one in compiled.record(case, card)
        if _is_wanted(compiled.name(one.launch), kernels)
    )
    return compiled.rows(launched, target)


def _is_wanted(name: str, kernels) -> bool:
    return not kernels or any(part in name.partition("(")[0] for part in kernels)


def _sorted(rows) -> list[dict]:
    return sorted(rows, key=lambda row: (int(re.sub(r"\D", "", row["target"])), row["key"]))


def _lines(committed: dict[str, list[dict]]) -> str:
    """JSON with a line per kernel, so that a change is read as a change of lines."""
    versions = []
    for version, rows in sorted(committed.items()):
        lines = (json.dumps({k: v for k, v in row.items() if k != "loop"}) for row in rows)
        versions.append(f'"{version}": [\n' + ",\n".join(lines) + "\n]")
    return "{\n" + ",\n".join(versions) + "\n}\n"


def _options(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m bench.ledger", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--arch", nargs="+", type=_target, default=TARGETS, help="say 90, or gfx942 for AMD")
    add("--kernel", nargs="+", default=(), help="only kernels whose name holds one of these")
    add("--check", action="store_true", help="exit 1 on a broken rule or an unreviewed change")
    add("--write", action="store_true", help="accept the present state as bench/ledger/ledger.json")
    add("--loops", action="store_true", help="show the hot loops, in cycles per pipe")
    add("--json", type=Path, metavar="FILE", help="write the rows, loops included")
    return parser.parse_args(arguments)


def _target(name: str) -> str:
    name = name.removeprefix("sm_")
    known = [str(architecture) for architecture in SHARED_MEMORY]
    if name not in known and not name.startswith("gfx"):
        raise argparse.ArgumentTypeError(f"{name} is unknown; choose from {', '.join(known)}")
    return name


if __name__ == "__main__":
    sys.exit(main())
