"""What a run leaves in its folder: config.json, metrics.jsonl, loss.png, summary.json."""

import contextlib
import fcntl
import json
import math
import os
from dataclasses import asdict
from pathlib import Path

from gpt import UserError
from gpt.config.train import TrainConfig
from gpt.runs.checkpoint import remove_partial, write_json, write_whole


def open_folder(folder: Path, resume: bool):
    """Make `folder` ready for a run and lock it; the lock is held as long as the result lives.

    A folder that holds another run is kept as folder.1, folder.2, ... unless it is resumed.
    Returns the lock and the new place of the earlier run, or None.
    """
    moved = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder)
        if not resume and (folder / "config.json").exists():
            numbers = (number for number in range(1, 1_000_000))
            moved = next(p for n in numbers if not (p := Path(f"{folder}.{n}")).exists())
            folder.rename(moved)
            folder.mkdir()
            lock = Lock(folder)
        remove_partial(folder)
    except OSError as error:
        raise UserError(f"--out-dir {folder} cannot be used: {error.strerror}") from None
    return lock, moved


class Lock:
    """A folder that this process alone works in, as long as the lock lives."""

    def __init__(self, folder: Path):
        self._file = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another train.py is at work in {folder}; wait for it or give another --out-dir"
            ) from None

    def __del__(self):
        if hasattr(self, "_file"):
            os.close(self._file)


class Record:
    """The open record of one run. `log` appends to metrics.jsonl, and to `--log`'s other place."""

    def __init__(self, folder: Path, config: TrainConfig, resume_at: int | None = None):
        """`resume_at` keeps the lines of an earlier part of the run, up to that step."""
        self.folder, path = folder, folder / "metrics.jsonl"
        self._also = _other_log(config)
        earlier = [] if resume_at is None else read_metrics(folder)
        with _one_sentence(folder):
            lines = [_line(metric) for metric in earlier if metric["step"] <= resume_at]
            write_whole(path, b"".join(lines))
            write_json(folder / "config.json", asdict(config))
            self._file = path.open("ab", buffering=0)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self._file.close()

    def log(self, **values) -> None:
        """One line: `step`, with `loss` for a training step or `val_loss` for an evaluation.

        A `sample` of text stays in the file; the other place is for figures.
        """
        line = _line(values)
        with _one_sentence(self.folder):
            if self._file.write(line) < len(line):  # what did not fit is an error of the next call
                self._file.write(b"\n")
        step = values["step"]
        self._also({n: value for n, value in values.items() if n not in ("step", "sample")}, step)

    def finish(self, summary: dict) -> None:
        """Write summary.json and the picture of the losses."""
        with _one_sentence(self.folder):
            write_json(self.folder / "summary.json", summary)
            draw_losses(read_metrics(self.folder), self.folder / "loss.png")


class NoRecord(contextlib.nullcontext):
    """What every rank but the main one writes."""

    def log(self, **values) -> None:
        pass

    def finish(self, summary: dict) -> None:
        pass


def read_metrics(folder: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl; one that was cut off by a crash is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    with _one_sentence(folder):
        lines = path.read_bytes().splitlines()
    metrics = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            metrics.append(json.loads(line))
    return [line for line in metrics if isinstance(line, dict) and type(line.get("step")) is int]


def _line(values: dict) -> bytes:
    """One line of json, where a loss that is no number is null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return (json.dumps(finite) + "\n").encode()


@contextlib.contextmanager
def _one_sentence(folder: Path):
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the record of the run in {folder} cannot be kept ({error.strerror or error}); "
            "its last checkpoint is whole, go on from it with --resume when that is mended"
        ) from None


def draw_losses(metrics: list[dict], path: Path) -> None:
    """The training and validation loss over the steps, as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, label, style in (("loss", "training", "-"), ("val_loss", "validation", "o-")):
        points = [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.2, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    shares = [(line["step"], line["accuracy"]) for line in metrics if "accuracy" in line]
    if shares:  # a task's
        share = axes.twinx()
        share.plot(*zip(*shares, strict=True), "s--", color="tab:green", markersize=4)
        share.set(ylabel="answered without a mistake (green)", ylim=(0, 1.02))
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=120)


def _other_log(config: TrainConfig):
    """A function (values, step) that writes to TensorBoard or Weights & Biases."""
    if config.log == "tensorboard":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--log tensorboard needs it: pip install tensorboard") from None
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
            raise UserError("--log wandb needs it: pip install wandb") from None
        run = wandb.init(project="gpt-kernels", dir=config.out_dir, config=asdict(config))
        return lambda values, step: run.log(values, step=step)
    return lambda values, step: None
