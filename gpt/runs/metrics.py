"""The metrics of a run: metrics.jsonl, summary.json, loss.png, and W&B."""

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .. import UserError
from ..files import Folder

METRICS = "metrics.jsonl"
LONGEST_LINE = 1 << 20  # bytes
LARGEST = 1e39  # above the largest fp32, and far below where matplotlib overflows


class Tracker:
    """Weights & Biases if `--log` names it; if it fails during the run, it is disabled.

    Make it before anything is written: UserError if its package is missing or it does not start.
    """

    def __init__(self, name: str, config: dict):
        self.log: Callable[[dict, int], object] | None = None  # values, step
        if name != "wandb":
            return
        try:
            import wandb

            project = os.environ.get("WANDB_PROJECT", "gpt-kernels")
            self.log = wandb.init(project=project, config=config).log
        except ImportError:
            raise UserError("--log wandb needs its package: pip install wandb") from None
        except Exception as error:  # its own, and those of what it uses
            advice = "run wandb login, set WANDB_MODE=offline, or remove --log"
            raise UserError(f"--log wandb does not start ({_line_of(error)}); {advice}") from None

    def __call__(self, values: dict, step: int) -> None:
        if self.log is None:
            return
        try:
            self.log(values, step)
        except Exception as error:  # a logger must not stop a run
            self.log = None
            print(f"--log wandb is disabled from here on ({_line_of(error)}); see {METRICS}")


def _line_of(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


class MetricsLog:
    """Appends a run's metrics to metrics.jsonl, and sends them to a tracker."""

    def __init__(
        self,
        folder: Folder,
        config: dict,  # of the run, as plain JSON; written to config.json
        tracker: Tracker | None = None,
        resume_at: int | None = None,  # keep the lines of the resumed run up to this step
    ):
        self.folder, self._tracker = folder, tracker or Tracker("none", {})
        with _as_user_error(folder.path):
            earlier = [] if resume_at is None else _read(folder)
            lines = [_line(metric) for metric in earlier if metric["step"] <= (resume_at or 0)]
            folder.write(METRICS, lines)
            self._file = folder.append(METRICS)
            folder.write_json("config.json", config)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self._file.close()

    def log(self, **values) -> None:
        """Append a line: `step`, and `loss` of a training step or `val_loss` of an evaluation."""
        with _as_user_error(self.folder.path):
            self._file.write(_line(values))
        self._tracker({n: value for n, value in values.items() if n != "step"}, values["step"])

    def sync(self) -> None:
        """Force the lines to the disk, before a checkpoint that follows them."""
        with _as_user_error(self.folder.path):
            self._file.sync()

    def finish(self, summary: dict) -> None:
        """Write summary.json and loss.png."""
        with _as_user_error(self.folder.path):
            self.folder.write_json("summary.json", summary)
            self.folder.write("loss.png", [plot_losses(_read(self.folder))])


def read_metrics(path: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, if any; those that are cut off or damaged are skipped."""
    with _as_user_error(path), contextlib.suppress(FileNotFoundError), Folder(path) as folder:
        return _read(folder)
    return []


def _read(folder: Folder) -> list[dict]:
    metrics = []
    with contextlib.suppress(FileNotFoundError), folder.open(METRICS) as file:
        for line in iter(partial(file.readline, LONGEST_LINE), b""):
            with contextlib.suppress(ValueError, RecursionError):
                metrics.append(json.loads(line))
    return [line for line in metrics if isinstance(line, dict) and _is_metric(line)]


def _is_metric(line: dict) -> bool:
    """Whether `MetricsLog.log` may have written the line: a step, numbers and null."""
    # earlier versions wrote a sample of text too
    numbers = [value for name, value in line.items() if name != "sample" and value is not None]
    known = all(type(number) in (int, float) and abs(number) < LARGEST for number in numbers)
    return known and type(line.get("step")) is int


def _line(values: dict) -> bytes:
    """One line of JSON, in which a loss that is not finite is null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return (json.dumps(finite) + "\n").encode()


@contextlib.contextmanager
def _as_user_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"the metrics of the run in {path} cannot be read or written"
        advice = "its last checkpoint is intact: solve this and continue with --resume"
        raise UserError(f"{problem} ({error.strerror or error}); {advice}") from None


def plot_losses(metrics: list[dict]) -> bytes:
    """A PNG of training loss, validation loss and a task's accuracy over the steps."""
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
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format="png")
    return content.getvalue()
