"""What a run leaves in its folder: config.json, metrics.jsonl, loss.png, summary.json."""

import fcntl
import json
from dataclasses import asdict
from pathlib import Path

from gpt import Refused
from gpt.checkpoint import write_json
from gpt.presets import TrainConfig


def open_folder(folder: Path, resume: bool):
    """Make `folder` ready for a run and lock it; the lock is held as long as the result lives.

    A folder that holds another run is kept as folder.1, folder.2, ... unless it is resumed.
    Returns the lock and the new place of the earlier run, or None.
    """
    moved = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
        if not resume and (folder / "config.json").exists():
            numbers = (number for number in range(1, 1_000_000))
            moved = next(p for n in numbers if not (p := Path(f"{folder}.{n}")).exists())
            folder.rename(moved)
            folder.mkdir()
            lock = _lock(folder)
    except OSError as error:
        raise Refused(f"--out-dir {folder} cannot be used: {error.strerror}") from None
    return lock, moved


def _lock(folder: Path):
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refused(
            f"another train.py is at work in {folder}; wait for it or give another --out-dir"
        ) from None
    return lock


class Record:
    """The open record of one run. `log` appends to metrics.jsonl, and to `--log`'s other place."""

    def __init__(self, folder: Path, config: TrainConfig, resume_at: int | None = None):
        """`resume_at` keeps the lines of an earlier part of the run, up to that step."""
        self.folder = folder
        earlier = [] if resume_at is None else read_metrics(folder)
        self.metrics = [line for line in earlier if line["step"] <= resume_at]
        write_json(folder / "config.json", asdict(config))
        self._file = (folder / "metrics.jsonl").open("w", encoding="utf-8")
        for line in self.metrics:
            self._write(line)
        self._also = _other_log(config)

    def log(self, **values) -> None:
        """One line: `step`, with `loss` for a training step or `val_loss` for an evaluation."""
        self.metrics.append(values)
        self._write(values)
        step = values["step"]
        self._also({name: value for name, value in values.items() if name != "step"}, step)

    def _write(self, values: dict) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def finish(self, summary: dict) -> None:
        """Write summary.json and the picture of the losses."""
        self._file.close()
        write_json(self.folder / "summary.json", summary)
        draw_losses(self.metrics, self.folder / "loss.png")


class NoRecord:
    """What every rank but the main one writes."""

    def log(self, **values) -> None:
        pass

    def finish(self, summary: dict) -> None:
        pass


def read_metrics(folder: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl; a last line that was cut off is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    metrics = []
    for number, line in enumerate(lines, start=1):
        try:
            metrics.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise Refused(f"{path}, line {number} is not JSON") from None
    return metrics


def draw_losses(metrics: list[dict], path: Path) -> None:
    """The training and validation loss over the steps, as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, label, style in (("loss", "training", "-"), ("val_loss", "validation", "o-")):
        points = [(line["step"], line[name]) for line in metrics if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.2, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=120)


def _other_log(config: TrainConfig):
    """A function (values, step) that writes to TensorBoard or Weights & Biases."""
    if config.log == "tensorboard":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise Refused("--log tensorboard needs it: pip install tensorboard") from None
        writer = SummaryWriter(config.out_dir)

        def write(values, step):
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        return write
    if config.log == "wandb":
        try:
            import wandb
        except ImportError:
            raise Refused("--log wandb needs it: pip install wandb") from None
        run = wandb.init(project="gpt-kernels", dir=config.out_dir, config=asdict(config))
        return lambda values, step: run.log(values, step=step)
    return lambda values, step: None
