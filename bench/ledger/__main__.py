"""The ledger of compiled kernels: registers, spills and instructions, without a GPU.

    python -m bench.ledger                     print every kernel of every architecture
    python -m bench.ledger --check             exit 1 on a broken rule or an unreviewed change
    python -m bench.ledger --write             accept the present state as bench/ledger/ledger.json
    python -m bench.ledger --arch 90 --kernel layer_norm

The operations of `bench.workloads.operations` and the whole steps of `bench.workloads.steps` run on
fake tensors; every launch that `kernels.common.launch` records is compiled. Results depend on the
Triton version: with a version that the committed ledger does not contain, only the rules are
checked.
"""

import argparse
import json
import sys
from pathlib import Path

import triton

from bench.ledger.compiled import TARGETS, collect, in_order, is_selected
from bench.ledger.rules import changes, findings
from gpt.files import write_whole
from kernels.common.launch import SHARED_MEMORY

COMMITTED = Path(__file__).with_name("ledger.json")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.ledger", description=__doc__.partition("\n")[0]
    )
    add, known = parser.add_argument, list(map(str, SHARED_MEMORY))
    add("--arch", nargs="+", choices=known, default=TARGETS, type=lambda s: s.removeprefix("sm_"))
    add("--kernel", nargs="+", default=(), help="only kernels whose name contains one of these")
    add("--check", action="store_true", help="exit 1 on a broken rule or an unreviewed change")
    add("--write", action="store_true", help="accept the present state as bench/ledger/ledger.json")
    options = parser.parse_args(arguments)

    def covered(row):
        return row["target"] in options.arch and is_selected(row["key"], options.kernel)

    rows = collect(options.arch, options.kernel)
    ledger, version = json.loads(COMMITTED.read_text()), triton.__version__
    committed = ledger.get(version)
    if options.write:
        kept = [row for row in committed or () if not covered(row)]
        ledger[version] = in_order([*kept, *rows])  # `python -m tests.ptx --write` adds "executed"
        write_whole(COMMITTED, as_text(ledger).encode())
        print(f"bench/ledger/ledger.json: wrote {len(rows)} kernels by triton {version}")
        if others := ", ".join(sorted(ledger.keys() - {version})):
            print(f"rows by triton {others} are unchanged: update them with that version")
        return 0
    if not options.check:
        for row in rows:
            shown = (
                f"{name} {row[name]}" for name in row if name not in ("target", "key", "cases")
            )
            print(f"sm_{row['target']} {row['key']}: {', '.join(shown)}")
        return 0
    found = [f"{row['target']} {row['key']}: {rule}" for row in rows for rule in findings(row)]
    if committed is None:
        print(
            f"triton {version}: only the rules are checked, because bench/ledger/ledger.json was "
            f"written with {' and '.join(ledger)}"
        )
    elif different := changes(rows, [row for row in committed if covered(row)]):
        found += [*different, "to accept these changes, run python -m bench.ledger --write"]
    print("\n".join(found) or f"{len(rows)} kernels follow every rule")
    return 1 if found else 0


def as_text(ledger: dict[str, list[dict]]) -> str:
    """One kernel per line, so that a changed kernel is a changed line of the diff."""
    versions = [
        f'"{version}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]"
        for version, rows in sorted(ledger.items())
    ]
    return "{\n" + ",\n".join(versions) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())
