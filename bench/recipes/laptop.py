"""Training time until the losses of the lecture and of nanoGPT, by `--preset laptop` on this CPU.

    python -m bench.recipes.laptop --text tinyshakespeare.txt --json FILE
    python -m bench.recipes.laptop --text tinyshakespeare.txt --json FILE --techniques

Three seeds, evaluated on the whole validation split; times exclude set-up and evaluations. The
lecture's own settings take LECTURE_STEPS steps, in fp32 like its file. The speed of a product of
matrices shows what the machine does at the time. `--techniques` compares steps without each one.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F

import kernels
from bench.recipes import common
from gpt.data.corpus import open_data
from gpt.files import read_json
from gpt.generation.load import load_model
from gpt.runs.metrics import read_metrics

LOSSES = (1.4873, 1.4697, 1.44)  # at the end of the lecture's run, nanoGPT's best, our aim
LECTURE = ["--preset=lecture", "--kernels=reference", "--device=cpu", "--eval-interval=15"]
LECTURE_STEPS = 30
WITHOUT = {  # technique -> what removes it
    "nothing": "pass",
    "`ShortAttention` and `ReluSquared`": "kernels.torch_cpu.is_faster = lambda x: False",
    "`keep_freed_memory`": "gpt.hardware.keep_freed_memory = lambda device: None",
    "bf16": "options += ['--dtype=float32']",
}
ROUNDS, STEPS, WARM_UP = 3, 30, 10
WINDOWS = 64  # contexts in which the effect of the crop is measured


def main(arguments: list[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--text", type=Path, required=True, help="tiny shakespeare")
    parser.add_argument("--techniques", action="store_true", help="compare training steps")
    options = parser.parse_args(arguments)
    text = options.text.resolve()
    if options.techniques:
        common.write("laptop-steps", step_times(text), options.json)
        return 0
    laptop, curves = ["--preset=laptop", "--eval-interval=50"], {}
    runs = {f"laptop, seed {seed}": [*laptop, f"--seed={seed}"] for seed in common.SEEDS}
    rows = [train(name, script, text, curves) for name, script in runs.items()]
    rows.append(common.show(common.median("laptop, median", rows)))
    lecture = [*LECTURE, f"--max-iters={LECTURE_STEPS}"]
    rows.append(train("the lecture's settings", lecture, text, curves))
    common.write("laptop", rows, options.json, more={"curves": curves})
    return 0


def train(name: str, script: list[str], text: Path, curves: dict[str, list]) -> dict:
    """The row of a run; adds its validation losses to `curves`: [seconds, loss] each."""
    speed = common.matmul_gflops()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        common.run_script("train.py", *script, f"--data={text}", "--sample=0", f"--out-dir={run}")
        found = common.evaluations(run)
        parameters = read_json(run / "summary.json")["parameters"]
        crops = crop_losses(run, text)
    row = {"run": name, "parameters": f"{parameters / 1e6:.1f} M", "steps": found[-1]["step"]}
    row["final validation loss"] = round(found[-1]["val_loss"], 4)
    row["training time, s"] = round(found[-1]["seconds"], 1)
    for loss in LOSSES:
        reached = next((e["seconds"] for e in found if e["val_loss"] <= loss), None)
        row[f"s to {loss}"] = round(reached, 1) if reached else common.NOT_REACHED
    curves[name] = [[round(e["seconds"], 1), round(e["val_loss"], 4)] for e in found]
    return common.show(row | crops | {"bf16 GFLOP/s": speed})


@torch.no_grad()
def crop_losses(run: Path, text: Path) -> dict[str, float]:
    """The loss of the same tokens if the context moves by one token, as in the lecture, or by S."""
    model = load_model(run, "last", kernels.load("torch"), "cpu")[0]
    T, S = model.config.block_size, model.config.block_size // 4
    tokens, found = open_data(str(text), "data", "char").val.long(), {}
    for slide, first in ((1, 1), (S, S)):  # targets T + 1 to T + S * WINDOWS
        losses = []
        for rows in tokens[first:].unfold(0, T + 1, slide)[: S * WINDOWS // slide].split(WINDOWS):
            logits = model(rows[:, :-1])[0][:, -slide:]  # (rows, slide, V)
            losses.append(F.cross_entropy(logits.mT, rows[:, -slide:]))
        found[f"loss, slide {slide}"] = round(torch.stack(losses).mean().item(), 4)
    return found


def step_times(text: Path) -> list[dict]:
    """The time of a step without each technique, in turns: median, 20th and 80th percentile."""
    found: dict[str, list[float]] = {name: [] for name in WITHOUT}
    options = ["--preset=laptop", f"--data={text}", "--eval-iters=1", "--log-interval=1"]
    options += ["--sample=0", f"--max-iters={STEPS}", f"--eval-interval={STEPS}"]
    for name, change in ROUNDS * list(WITHOUT.items()):
        with tempfile.TemporaryDirectory() as folder:
            program = f"options = {[*options, f'--out-dir={folder}/run']}; {change}"
            program = f"import kernels.torch_cpu, gpt, train; {program}; train.main(options)"
            common.run_script("-c", program)
            lines = [one for one in read_metrics(Path(folder, "run")) if "loss" in one]
        found[name] += [one["milliseconds"] for one in lines[WARM_UP:]]
    rows, first = [], statistics.median(found["nothing"])
    for name, times in found.items():
        (low, _, _, high), median = statistics.quantiles(times, n=5), statistics.median(times)
        row = {"without": name, "ms": round(median), "p20-p80": f"{low:.0f}-{high:.0f}"}
        rows.append(common.show(row | {"relative time": f"{median / first:.2f}x"}))
    return rows


if __name__ == "__main__":
    sys.exit(main())
