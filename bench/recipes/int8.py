"""Train the quickstart, quantize its weights to int8, and compare size and perplexity.

    python -m bench.recipes.int8 --text tinyshakespeare.txt --json bench/results/int8-DATE.json

Perplexity is measured on the whole validation split; sizes are those of the weights on disk.
"""

import sys
import tempfile
from pathlib import Path

from bench.recipes import common
from gpt.files import read_json


def main(arguments: list[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--text", type=Path, required=True, help="tiny shakespeare")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run, quantized = Path(folder, "run"), Path(folder, "int8")
        train = ("train.py", "--preset=quickstart", f"--data={options.text.resolve()}")
        common.run_script(*train, f"--out-dir={run}", "--sample=0")
        sample = ("sample.py", f"--out-dir={run}", "--start=A", "--max-new-tokens=1")
        quantize = ("--kernels=torch", "--quantize=int8", f"--save-dir={quantized}")
        common.run_script(*sample, *quantize)
        row = common.show({"model": "quickstart", **compare(run, quantized)})
    if options.json:
        common.write("int8", [row], options.json)
    return 0


def compare(run: Path, quantized: Path) -> dict:
    """Sizes and perplexities of a run and its quantized copy."""
    sizes = []
    for folder in (run, quantized):
        record = read_json(folder / "best.json")
        sizes.append((folder / record["files"]["weights"]["name"]).stat().st_size / 1e6)
    before, after = record["int8"]["perplexity_before"], record["int8"]["perplexity"]
    return {
        "size, MB": round(sizes[0], 2),
        "int8 size, MB": round(sizes[1], 2),
        "perplexity": round(before, 4),
        "int8 perplexity": round(after, 4),
        "increase": f"{100 * (after / before - 1):.2f}%",
    }


if __name__ == "__main__":
    sys.exit(main())
