"""How much sooner the quickstart is where nanoGPT's CPU recipe ends: both run here, in turn.

    python -m bench.recipes.quickstart --nanogpt PATH_OF_A_CHECKOUT --text tinyshakespeare.txt

nanoGPT's recipe is the one of its README for a CPU: 4 layers, 128 wide, block 64, batch 12, 2,000
iterations. Its final model is evaluated over the whole validation split, in windows of its block;
that loss is the mark. Seconds are those of training, without set-up and without evaluations.
"""

import argparse
import json
import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch
from torch.nn import functional as F

from bench import checkouts
from bench.results_file import SCHEMA, commit
from gpt.data.batches import Data, windows
from gpt.data.corpus import open_data

ROOT = Path(__file__).resolve().parents[2]
BLOCK_SIZE = 64
RECIPE = (  # nanoGPT's README, "I only have a macbook"; evaluated at its end alone
    "--device=cpu --compile=False --eval_interval=2000 --eval_iters=20 --log_interval=1 "
    f"--block_size={BLOCK_SIZE} --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
).split()
EVAL_INTERVAL = 25  # of the quickstart, so that the moment of passing the mark is known closely


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, required=True, help="tiny shakespeare")
    parser.add_argument("--runs", type=int, default=1, help="of each, in turn")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    if not (options.nanogpt / "train.py").is_file():
        parser.error(f"{options.nanogpt} is no checkout of nanoGPT: it has no train.py")
    if not options.text.is_file():
        parser.error(f"{options.text} does not exist")
    data = open_data(str(options.text), "data", "char")
    runs = []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            theirs = run_nanogpt(options.nanogpt.resolve(), data, Path(folder))
            ours = run_quickstart(options.text.resolve(), Path(folder) / "run")
        passed = next((e for e in ours if e["val_loss"] <= theirs["val_loss"]), None)
        run = {
            "nanoGPT's loss": round(theirs["val_loss"], 4),
            "nanoGPT, seconds": round(theirs["seconds"], 1),
            "quickstart, seconds to that loss": passed and round(passed["seconds"], 1),
            "times sooner": passed and round(theirs["seconds"] / passed["seconds"], 1),
            "quickstart, seconds in all": round(ours[-1]["seconds"], 1),
            "quickstart's loss": round(ours[-1]["val_loss"], 4),
        }
        runs.append(run)
        print(json.dumps(run, indent=1), flush=True)
    if options.json:
        figures = {
            "schema": SCHEMA,
            "table": "quickstart",
            "date": date.today().isoformat(),
            "commit": commit(),
            "machine": machine(),
            "rows": runs,
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def machine() -> str:
    """The processor and the versions."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    processor = names[0] if names else platform.processor()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{os.cpu_count()} cores of {processor}, {versions}"


def run_nanogpt(checkout: Path, data: Data, folder: Path) -> dict:
    """Seconds of training, and the final model's loss over the whole validation split."""
    copy = folder / "nanogpt"  # it reads its options' reader and its data from where it stands
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
    tokens = copy / "data" / "shakespeare_char"
    for split in ("train", "val"):
        getattr(data, split).numpy().astype("<u2").tofile(tokens / f"{split}.bin")
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py"]
    # without a meta file its vocabulary is GPT-2's: say 65 the way its own preparation does
    characters = dict(enumerate(data.tokenizer.characters))
    meta = {"vocab_size": len(characters), "itos": characters}
    (tokens / "meta.pkl").write_bytes(pickle.dumps(meta))
    done = subprocess.run([*command, *RECIPE], cwd=copy, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"nanoGPT's train.py ended with:\n{done.stderr[-2000:]}")
    times = {
        int(i): float(t) for i, t in re.findall(r"iter (\d+): .*?time ([\d.]+)ms", done.stdout)
    }
    seconds = sum(time for i, time in times.items() if 0 < i < 2000) / 1e3  # 0 and 2,000 evaluate
    return {"seconds": seconds, "val_loss": _nanogpt_val_loss(copy, data)}


@torch.no_grad()
def _nanogpt_val_loss(checkout: Path, data: Data) -> float:
    module = checkouts.nanogpt(checkout)
    saved = torch.load(checkout / "out-shakespeare-char" / "ckpt.pt", weights_only=True)
    model = module.GPT(module.GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    model.eval()
    x, y = windows(data.val, BLOCK_SIZE)
    total = 0.0
    for rows, targets in zip(x.split(256), y.split(256), strict=True):
        logits, _ = model(rows, targets)  # its targets of -1 do not count either
        total += F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum"
        ).item()
    return total / (len(data.val) - 1)


def run_quickstart(text: Path, out_dir: Path) -> list[dict]:
    """The evaluations of a run of the quickstart: step, seconds of training, val_loss."""
    command = [sys.executable, ROOT / "train.py", "--preset", "quickstart", "--data", text]
    options = ["--out-dir", out_dir, "--eval-interval", str(EVAL_INTERVAL), "--sample", "0"]
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    lines = (out_dir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "val_loss" in line]


if __name__ == "__main__":
    sys.exit(main())
