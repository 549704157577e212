"""One self-contained HTML page about a run, written into its folder: `python -m bench.report RUN`.

Loss curves, samples, speed, memory, attention maps of a prompt, the implementation of each
operation, and the configuration, from the files that train.py wrote. The attention maps are
computed by the lecture's modules from the saved weights. The page has no script and loads nothing;
text from the run is escaped by the template (run_report.html).
"""

import base64
import io
import re
import warnings
from dataclasses import asdict
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure

from gpt import UserError
from gpt.config.presets import PRESETS
from gpt.files import read_json, write_whole
from gpt.generation.load import load_model
from gpt.models import reference
from gpt.runs.metrics import read_metrics

PAGE = "report.html"
TEMPLATE = Path(__file__).with_name("run_report.html")
PROMPT_TOKENS = 24  # at most, so that a cell of the attention maps can be seen
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # not allowed in HTML
CURVES = {  # title -> unit, and label -> key of metrics.jsonl
    "Loss": ("nats per token", {"training": "loss", "validation": "val_loss"}),
    "Accuracy": ("fraction of correct answers", {"accuracy": "accuracy"}),
    "Time of a training step": ("ms", {"training": "milliseconds"}),
}


def write(folder: Path, prompt: str | None) -> Path:
    """Write the page of the run in `folder`."""
    try:
        import jinja2
    except ImportError:
        raise UserError("the page of a run needs jinja2; pip install -e '.[report]'") from None
    config, metrics = read_json(folder / "config.json"), read_metrics(folder)
    summary = folder / "summary.json"
    samples = [line for line in metrics if isinstance(line.get("sample"), str)]
    environment = jinja2.Environment(autoescape=True)
    environment.finalize = lambda value: CONTROL.sub("\ufffd", str(value))
    environment.tests["drawable"] = is_number
    page = environment.from_string(TEMPLATE.read_text()).render(
        name=folder.resolve().name,
        config=config,
        summary=read_json(summary) if summary.exists() else {},
        samples=reversed(samples),
        curves=curves(metrics),
        attention=attention(folder, prompt or (samples[-1]["sample"] if samples else "")),
        options=options(config),
    )
    write_whole(folder / PAGE, page.encode())
    return folder / PAGE


def is_number(value) -> bool:
    """Whether a value from a file is a number that can be drawn."""
    return type(value) in (int, float) and -1e18 < value < 1e18


def options(config: dict) -> list[tuple[str, str, bool]]:
    """(option, value, whether it differs from the preset)."""
    preset = PRESETS.get(str(config.get("preset")))
    usual = flatten(asdict(preset) if preset else config)
    return [(name, value, value != usual.get(name)) for name, value in flatten(config).items()]


def flatten(config: dict) -> dict[str, str]:
    """Every option as on the command line; those of the model are nested in the file."""
    flat = {}
    for name, value in config.items():
        inner = value.items() if isinstance(value, dict) else [(name, value)]
        flat |= {"--" + key.replace("_", "-"): str(one) for key, one in inner}
    return flat


def data_uri(figure: Figure) -> str:
    file = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": PAGE}):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # drawn as a box
        figure.savefig(file, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def curves(metrics: list[dict]) -> list[tuple[str, str]]:
    """(title, image) of every curve that has points."""
    found = []
    for title, (unit, keys) in CURVES.items():
        axes = Figure(figsize=(7, 3.5), layout="constrained").subplots()
        axes.set(title=title, xlabel="training step", ylabel=unit)
        axes.grid(alpha=0.3)
        for label, key in keys.items():
            numbers = [(line["step"], line.get(key)) for line in metrics]
            points = [point for point in numbers if all(map(is_number, point))]
            if points:
                marker = "o-" if len(points) <= 60 else "-"
                axes.plot(*zip(*points, strict=True), marker, label=label, markersize=3)
        if axes.lines:
            axes.legend(frameon=False)
            found.append((title, data_uri(axes.figure)))
    return found


def attention(folder: Path, prompt: str) -> dict[str, str]:
    """The maps of the best model for a prompt, or why there are none."""
    if not prompt:
        return {"text": "There is no sample to show the attention of; give --prompt TEXT."}
    try:
        model, tokenizer, _ = load_model(folder, "best", None, "cpu")
        tokens = torch.from_numpy(tokenizer.encode(prompt))[None]  # (1, T)
        tokens = tokens[:, : min(PROMPT_TOKENS, model.config.block_size)]
        words = [tokenizer.decode([token]) for token in tokens[0].tolist()]
    except UserError as error:
        return {"text": str(error)}
    maps = attention_maps(model, tokens)
    if not maps:
        return {"text": "This stage of the lecture has no attention heads."}
    return {"text": "".join(words), "image": data_uri(draw_maps(maps, words, model.config.n_head))}


@torch.no_grad()
def attention_maps(model, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The attention weights (T, T) of every head for tokens (1, T), layer by layer.

    `Head` computes them as `wei` and passes them to its dropout, where a hook records them.
    """
    maps: list[torch.Tensor] = []
    hooks = [
        module.dropout.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0][0]))
        for module in model.modules()
        if isinstance(module, reference.Head)
    ]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return maps


def draw_maps(maps: list[torch.Tensor], words: list[str], n_head: int) -> Figure:
    """A grid of images: one row per layer, one column per head."""
    layers, T = len(maps) // n_head, len(words)
    size = (2.2 * n_head + 0.5, 2.3 * layers + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(layers, n_head, sharex=True, sharey=True, squeeze=False)
    labels = [repr(word)[1:-1][:4] for word in words]
    for number, (axes, weights) in enumerate(zip(grid.flat, maps, strict=True)):
        axes.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1)
        layer, head = divmod(number, n_head)
        axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
        axes.set_xticks(range(T), labels, fontsize=5, rotation=90, parse_math=False)
        axes.set_yticks(range(T), labels, fontsize=5, parse_math=False)
        axes.label_outer()
    return figure
