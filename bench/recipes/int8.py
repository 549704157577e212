"""What int8 weights cost: the quickstart is trained, then evaluated before and after quantizing.

    python -m bench.recipes.int8 --text tinyshakespeare.txt --json bench/results/int8-DATE.json

Perplexity is over the whole validation split, sizes are those of the weights on the disk.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from bench.recipes.quickstart import machine
from bench.results_file import REPOSITORY, SCHEMA, commit, write


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="tiny shakespeare")
    parser.add_argument("--preset", default="quickstart", help="of train.py")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options, more = parser.parse_known_args(arguments)  # more options of train.py
    with tempfile.TemporaryDirectory() as folder:
        trained, quantized = Path(folder, "run"), Path(folder, "int8")
        train = ["train.py", f"--preset={options.preset}", f"--data={options.text.resolve()}"]
        _run(*train, f"--out-dir={trained}", "--sample=0", *more)
        sample = ["sample.py", f"--out-dir={trained}", "--start=A", "--max-new-tokens=1"]
        _run(*sample, "--kernels=torch", "--quantize=int8", f"--save-dir={quantized}")
        row = {"model": options.preset, **compare(trained, quantized)}
    print(json.dumps(row))
    if options.json:
        head = {"schema": SCHEMA, "table": "int8", "date": date.today().isoformat()}
        head |= {"machine": machine(), "commit": commit()}
        write(options.json, {**head, "rows": [row]})
    return 0


def compare(trained: Path, quantized: Path) -> dict:
    """The row of figures of a run and its quantized copy."""
    record = json.loads((quantized / "best.json").read_text())
    before, after = record["int8"]["perplexity_before"], record["int8"]["perplexity"]
    return {
        "MB": round(_size(trained) / 1e6, 2),
        "MB in int8": round(_size(quantized) / 1e6, 2),
        "perplexity": round(before, 4),
        "perplexity in int8": round(after, 4),
        "worse by": f"{100 * (after / before - 1):.2f}%",
    }


def _size(folder: Path) -> int:
    """Bytes of the best checkpoint's weights."""
    record = json.loads((folder / "best.json").read_text())
    return (folder / record["files"]["weights"]["name"]).stat().st_size


def _run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{arguments[0]} ended with {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())
