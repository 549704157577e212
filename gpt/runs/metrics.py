"""The metrics of a run: metrics.jsonl, summary.json, loss.png, and TensorBoard or W&B."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from .. import UserError
from ..files import write_json, write_whole

Write = Callable[[dict, int], None]  # values, step


class MetricsLog:
    """Appends a run's metrics to metrics.jsonl, and to the tracker that `--log` names."""

    def __init__(
        self,
        folder: Path,
        config: dict,  # of the run, as plain JSON; written to config.json
        tracker: str = "none",  # tensorboard, wandb
        resume_at: int | None = None,  # keep the lines of the resumed run up to this step
    ):
        self.folder, path = folder, folder / "metrics.jsonl"
        self._track = _tracker(tracker, folder, config)
        earlier = [] if resume_at is None else read_metrics(folder)
        with _as_user_error(folder):
            lines = [_line(metric) for metric in earlier if metric["step"] <= (resume_at or 0)]
            write_whole(path, b"".join(lines))
            write_json(folder / "config.json", config)
            self._file = path.open("ab", buffering=0)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self._file.close()

    def log(self, **values) -> None:
        """Append a line: `step`, with `loss` for a training step or `val_loss` for an evaluation.

        A `sample` of text is written to the file only, not to the tracker.
        """
        line = _line(values)
        with _as_user_error(self.folder):
            if self._file.write(line) < len(line):  # a full disk; the next write raises
                self._file.write(b"\n")
        step = values["step"]
        self._track({n: value for n, value in values.items() if n not in ("step", "sample")}, step)

    def finish(self, summary: dict) -> None:
        """Write summary.json and loss.png."""
        with _as_user_error(self.folder):
            write_json(self.folder / "summary.json", summary)
            plot_losses(read_metrics(self.folder), self.folder / "loss.png")


def read_metrics(folder: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl; lines that a crash has cut off are skipped."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    with _as_user_error(folder):
        lines = path.read_bytes().splitlines()
    metrics = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            metrics.append(json.loads(line))
    return [line for line in metrics if isinstance(line, dict) and type(line.get("step")) is int]


def _line(values: dict) -> bytes:
    """One line of JSON, in which a loss that is not finite is null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return (json.dumps(finite) + "\n").encode()


@contextlib.contextmanager
def _as_user_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"the metrics of the run in {folder} cannot be written"
        advice = "its last checkpoint is intact: solve this and continue with --resume"
        raise UserError(f"{problem} ({error.strerror or error}); {advice}") from None


def plot_losses(metrics: list[dict], path: Path) -> None:
    """Plot training loss, validation loss and a task's accuracy over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, label, style in (("loss", "training", "-"), ("val_loss", "validation", "o-")):
        points = [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.2, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    accuracy = [(line["step"], line["accuracy"]) for line in metrics if "accuracy" in line]
    if accuracy:
        right = axes.twinx()
        right.plot(*zip(*accuracy, strict=True), "s--", color="tab:green", markersize=4)
        right.set(ylabel="accuracy (green)", ylim=(0, 1.02))
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=120)


def _tracker(name: str, folder: Path, config: dict) -> Write:
    try:
        if name == "wandb":
            import wandb

            project = os.environ.get("WANDB_PROJECT", "gpt-kernels")
            return wandb.init(project=project, dir=str(folder), config=config).log
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder))

            def write(values: dict, step: int) -> None:
                for key, value in values.items():
                    writer.add_scalar(key, value, step)
                writer.flush()

            return write
    except ImportError:
        raise UserError(f"--log {name} needs its package: pip install {name}") from None
    return lambda values, step: None
