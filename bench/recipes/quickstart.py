"""Time for the quickstart to reach the final loss of nanoGPT's CPU recipe, in turns, three seeds.

    python -m bench.recipes.quickstart --nanogpt PATH_OF_A_CHECKOUT --text tinyshakespeare.txt

nanoGPT's recipe is the CPU recipe of its README: 4 layers, 128 channels, block size 64, batch 12,
2,000 iterations. Its final model is evaluated on the whole validation split, in windows of its
block size. Times are training times, without set-up and evaluations, but for that "from start to
sample". The speed of a product of matrices shows what the machine does at the time.
"""

import pickle
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench import checkouts
from bench.recipes import common
from gpt.data.batches import TokenDataset
from gpt.data.corpus import open_data
from gpt.training.evaluation import evaluate, validation_batches
from gpt.training.precision import Precision

BLOCK_SIZE = 64
RECIPE = (  # nanoGPT's README, "I only have a macbook"; evaluated only at the end
    "--device=cpu --compile=False --eval_interval=2000 --eval_iters=20 --log_interval=1 "
    f"--block_size={BLOCK_SIZE} --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
).split()


def main(arguments: list[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, required=True, help="tiny shakespeare")
    options = parser.parse_args(arguments)
    for path in (options.nanogpt / "train.py", options.text):
        if not path.is_file():
            parser.error(f"{path} does not exist; give a checkout of nanoGPT and a text")
    data, rows = open_data(str(options.text), "data", "char"), []
    for seed in common.SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            row = race(options.nanogpt, options.text, data, seed, Path(folder))
        rows.append(common.show(row))
    rows.append(common.show(common.median("median", rows)))
    common.write("quickstart", rows, options.json)
    return 0


def race(checkout: Path, text: Path, data: TokenDataset, seed: int, folder: Path) -> dict:
    """nanoGPT's run, and then the quickstart's, twice."""
    speed = common.matmul_gflops()
    loss, theirs = run_nanogpt(checkout, data, folder / "nanogpt")
    script = ["train.py", "--preset=quickstart", f"--data={text.resolve()}", f"--seed={seed}"]
    began = time.perf_counter()
    common.run_script(*script, f"--out-dir={folder / 'as users run it'}")
    seconds = time.perf_counter() - began
    script += ["--eval-interval=15", "--sample=0", f"--out-dir={folder / 'run'}"]
    common.run_script(*script)
    ours = common.evaluations(folder / "run")
    reached = next((e["seconds"] for e in ours if e["val_loss"] <= loss), float("inf"))
    return {
        "run": f"seed {seed}",
        "nanoGPT final loss": round(loss, 4),
        "nanoGPT, s": round(theirs, 1),
        "quickstart, s to that loss": round(reached, 1),
        "speedup": round(theirs / reached, 1),
        "quickstart, s in total": round(ours[-1]["seconds"], 1),
        "s from start to sample": round(seconds, 1),
        "quickstart final loss": round(ours[-1]["val_loss"], 4),
        "bf16 GFLOP/s": speed,
    }


def run_nanogpt(checkout: Path, data: TokenDataset, copy: Path) -> tuple[float, float]:
    """Train nanoGPT in a copy of its checkout; the loss on the validation split and the seconds."""
    # its train.py reads its configuration and its data relative to its own folder
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
    tokens = copy / "data" / "shakespeare_char"
    for split in ("train", "val"):
        getattr(data, split).numpy().astype("<u2").tofile(tokens / f"{split}.bin")
    # without a meta file it would use GPT-2's vocabulary size
    characters = dict(enumerate(data.tokenizer.characters))
    meta = {"vocab_size": len(characters), "itos": characters}
    (tokens / "meta.pkl").write_bytes(pickle.dumps(meta))
    script = ("train.py", "config/train_shakespeare_char.py", *RECIPE)
    printed = common.run_script(*script, folder=copy)
    times = re.findall(r"iter (\d+): .*?time ([\d.]+)ms", printed)
    seconds = sum(float(time) for i, time in times if 0 < int(i) < 2000) / 1e3  # others evaluate
    saved = torch.load(copy / "out-shakespeare-char" / "ckpt.pt", weights_only=True)
    model = checkouts.nanogpt(copy, saved["model_args"])
    model.load_state_dict(saved["model"])
    precision = Precision(torch.device("cpu"), torch.float32)
    return evaluate(model, validation_batches(data, BLOCK_SIZE), precision), seconds


if __name__ == "__main__":
    sys.exit(main())
