"""Time for the quickstart to reach the final loss of nanoGPT's CPU recipe, both run here in turn.

    python -m bench.recipes.quickstart --nanogpt PATH_OF_A_CHECKOUT --text tinyshakespeare.txt

nanoGPT's recipe is the CPU recipe of its README: 4 layers, 128 channels, block size 64, batch 12,
2,000 iterations. Its final model is evaluated on the whole validation split, in windows of its
block size. Times are training times, without set-up and evaluations.
"""

import pickle
import re
import shutil
import sys
import tempfile
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
EVAL_INTERVAL = 25  # of the quickstart: the resolution of the time at which it reaches the loss


def main(arguments: list[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, required=True, help="tiny shakespeare")
    options = parser.parse_args(arguments)
    for path in (options.nanogpt / "train.py", options.text):
        if not path.is_file():
            parser.error(f"{path} does not exist; give a checkout of nanoGPT and a text")
    data = open_data(str(options.text), "data", "char")
    with tempfile.TemporaryDirectory() as folder:
        nanogpt_loss, nanogpt_seconds = run_nanogpt(options.nanogpt, data, Path(folder, "nanogpt"))
        run = Path(folder, "run")
        script = ["train.py", "--preset=quickstart", f"--data={options.text.resolve()}"]
        script += [f"--eval-interval={EVAL_INTERVAL}", "--sample=0", f"--out-dir={run}"]
        common.run_script(*script)
        ours = common.evaluations(run)
    reached = next((e["seconds"] for e in ours if e["val_loss"] <= nanogpt_loss), None)
    row = {
        "nanoGPT final loss": round(nanogpt_loss, 4),
        "nanoGPT, s": round(nanogpt_seconds, 1),
        "quickstart, s to that loss": reached and round(reached, 1),
        "speedup": reached and round(nanogpt_seconds / reached, 1),
        "quickstart, s in total": round(ours[-1]["seconds"], 1),
        "quickstart final loss": round(ours[-1]["val_loss"], 4),
    }
    common.show(row)
    common.write("quickstart", [row], options.json)
    return 0


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
