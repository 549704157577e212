"""Execute some programs of the ledger's kernels on the CPU: `python -m tests.ptx`.

    python -m tests.ptx --kernel attention --arch 90 --triton 3.6     print what they do
    python -m tests.ptx --write                                       keep it in the ledger

Every launch of the ledger's workloads is compiled; of each kernel a few programs are executed. The
exit code is 1 if one is faulty.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

TARGETS = ("80", "90", "120")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.ptx", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--kernel", nargs="+", default=(), help="words in the names of kernels")
    parser.add_argument("--arch", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--triton", help="a version to install for this run, for example 3.6")
    parser.add_argument("--write", action="store_true", help="write the counts into the ledger")
    options = parser.parse_args(arguments)
    if options.triton:
        return with_triton(options.triton)
    os.environ.pop("TRITON_INTERPRET", None)  # read on import: interpreted kernels do not compile
    import triton

    from bench.ledger.__main__ import COMMITTED, as_text
    from tests.ptx.counts import counted

    found = counted(options.arch, options.kernel)
    for (target, key), counts in found.items():
        print(f"sm_{target} {key}: {counts}")
    if options.write:
        ledger = json.loads(COMMITTED.read_text())
        for row in ledger[triton.__version__]:
            place = row["target"], row["key"]
            row |= {"executed": found[place]} if place in found else {}
        COMMITTED.write_text(as_text(ledger))
    return int(any(str(counts).startswith("fault") for counts in found.values()))


def with_triton(version: str) -> int:
    """Run this command with another version of Triton, installed into a temporary folder."""
    at = sys.argv.index("--triton")
    command = [sys.executable, "-m", "tests.ptx", *sys.argv[1:at], *sys.argv[at + 2 :]]
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder]
        if subprocess.call([*pip, f"triton=={version}.*"]):
            return 2
        path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
        return subprocess.call(command, env=os.environ | {"PYTHONPATH": path})


if __name__ == "__main__":
    sys.exit(main())
