"""One HTML page about one run, in its folder: `python -m bench.report RUN`.

Loss curves, what the model said at each evaluation, its speed and memory, attention maps of a
prompt, which kernels served, and the configuration. All figures are those that train.py left in
the folder; the attention maps are computed by the lecture's modules from the saved weights.
"""

from dataclasses import asdict
from pathlib import Path

import torch

from bench.report import html
from bench.report.html import is_number, table, tag
from gpt import UserError
from gpt.config.presets import PRESETS
from gpt.generation.generate import generate
from gpt.models import reference
from gpt.runs.checkpoint import read_json, write_whole
from gpt.runs.metrics import read_metrics
from gpt.runs.run_state import load_model

PAGE = "report.html"
PROMPT = 24  # tokens at most: a cell of the maps stays large enough to be seen
FIGURES = {  # of summary.json
    "best_val_loss": ("best validation loss", "{:.4f}"),
    "final_val_loss": ("last validation loss", "{:.4f}"),
    "accuracy": ("answered right", "{:.1%}"),
    "steps": ("steps", "{:,}"),
    "skipped_steps": ("of them skipped", "{:,}"),
    "training_seconds": ("seconds of training", "{:,.1f}"),
    "tokens_per_second": ("tokens per second", "{:,.0f}"),
    "peak_memory_bytes": ("peak memory, bytes", "{:,}"),
    "parameters": ("parameters", "{:,}"),
}


def write(folder: Path, prompt: str | None, ledger: list[dict]) -> Path:
    """Write the page of the run in `folder`; `ledger` knows the kernels of each operation."""
    config, metrics = read_json(folder / "config.json"), read_metrics(folder)
    path = folder / "summary.json"
    summary = read_json(path) if path.exists() else {}
    parts = [
        tag("h1", f"The run in {folder.name}"),
        tag("p", _headline(config, summary), class_="faint"),
        figures(summary),
        tag("h2", "Loss"),
        losses(metrics),
        tag("h2", "Time of a step"),
        html.chart({"milliseconds": _curve(metrics, "milliseconds")}, "step", "ms"),
        tag("h2", "What it said"),
        samples(metrics),
        tag("h2", "What its heads look at"),
        attention(folder, prompt or _last_sample(metrics)),
        tag("h2", "What computed it"),
        operations(summary, ledger),
        tag("h2", "Configuration"),
        configuration(config),
    ]
    text = html.document(f"{folder.name}: a run of train.py", html.together(parts))
    write_whole(folder / PAGE, text.encode())
    return folder / PAGE


def _headline(config: dict, summary: dict) -> str:
    said = f"preset {config.get('preset')} on {config.get('data')}"
    if not summary:
        return f"{said}; it has not ended"
    versions = summary.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    with_ = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{said}; {summary.get('device')}, {summary.get('dtype')}, {with_}"


def figures(summary: dict) -> html.Markup:
    boxes = [
        tag("div", tag("dt", label), tag("dd", form.format(summary[name])))
        for name, (label, form) in FIGURES.items()
        if is_number(summary.get(name))
    ]
    return tag("dl", *boxes)


def _curve(metrics: list[dict], name: str) -> list[tuple]:
    return [(line["step"], line[name]) for line in metrics if _has(line, name)]


def _has(line: dict, name: str) -> bool:
    return is_number(line["step"]) and is_number(line.get(name))


def losses(metrics: list[dict]) -> html.Markup:
    curves = {"training": _curve(metrics, "loss"), "validation": _curve(metrics, "val_loss")}
    charts = [html.chart(curves, "step", "nats per token")]
    if shares := _curve(metrics, "accuracy"):  # a task's
        charts.append(html.chart({"answered right": shares}, "step", "share"))
    return html.together(charts)


def samples(metrics: list[dict]) -> html.Markup:
    """The text of each evaluation, the latest first."""
    parts = []
    for line in reversed(metrics):
        if isinstance(line.get("sample"), str) and _has(line, "val_loss"):
            caption = f"step {line['step']:,}, validation loss {line['val_loss']:.4f}"
            parts += [tag("p", caption, class_="faint"), tag("pre", line["sample"])]
    return html.together(parts or [tag("p", "No samples: the run had --sample 0.", class_="faint")])


def _last_sample(metrics: list[dict]) -> str:
    said = [line["sample"] for line in metrics if isinstance(line.get("sample"), str)]
    return said[-1] if said else ""


def attention(folder: Path, prompt: str) -> html.Markup:
    """A map per head of the best model; without a prompt, of what the model itself says."""
    try:
        model, tokenizer, _ = load_model(folder, "best", None, "cpu")
        if prompt:
            tokens = torch.from_numpy(tokenizer.encode(prompt))[None]  # (1, T)
        else:
            start = torch.zeros((1, 1), dtype=torch.long)
            generator = torch.Generator().manual_seed(0)
            said = generate(model, start, PROMPT, generator=generator)
            tokens = torch.stack(list(said), dim=1)
        tokens = tokens[:, : min(PROMPT, model.config.block_size)]
        words = [tokenizer.decode([token]) for token in tokens[0].tolist()]
    except UserError as refusal:
        return tag("p", str(refusal), class_="faint")
    maps = attention_maps(model, tokens)
    if not maps:
        return tag("p", "This step of the lecture's road has no heads.", class_="faint")
    said = "Each row is a token and shows which earlier ones it takes how much of. The text: "
    H = model.config.n_head
    drawn = [
        html.heat_map(weights, words, f"layer {number // H + 1}, head {number % H + 1}")
        for number, weights in enumerate(maps)
    ]
    return html.together(
        [
            tag("p", said, class_="faint"),
            tag("pre", "".join(words)),
            tag("div", *drawn, class_="maps"),
        ]
    )


@torch.no_grad()
def attention_maps(model, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The affinities (T, T) of every head for tokens (1, T), layer by layer.

    `Head` computes them as `wei`, and hands them to its dropout, where they are overheard.
    """
    heard: list[torch.Tensor] = []
    heads = [module for module in model.modules() if isinstance(module, reference.Head)]
    hooks = [
        head.dropout.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0][0]))
        for head in heads
    ]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return heard


def operations(summary: dict, ledger: list[dict]) -> html.Markup:
    """Which implementation served each operation, and the Triton kernels it is made of."""
    served = summary.get("kernels")
    if not isinstance(served, dict):
        return tag("p", "The run has not ended, so this was not recorded.", class_="faint")
    rows = [
        [name, by, ", ".join(_kernels(name, ledger)) if by == "triton" else ""]
        for name, by in served.items()
    ]
    return table(["operation", "served by", "kernels"], rows)


def _kernels(operation: str, ledger: list[dict]) -> list[str]:
    names = {
        row["key"].partition("(")[0]
        for row in ledger
        if any(case.split()[0] == operation for case in row.get("cases", ()))
    }
    return sorted(names)


def configuration(config: dict) -> html.Markup:
    """Every option; one that is not its preset's stands in bold."""
    preset = config.get("preset")
    usual = PRESETS.get(preset) if isinstance(preset, str) else None
    usual = _flat(asdict(usual)) if usual else {}
    rows = [
        [name, tag("b", value) if usual and value != usual.get(name) else value]
        for name, value in _flat(config).items()
    ]
    return table(["option", "value"], rows)


def _flat(config: dict) -> dict[str, str]:
    flat = {}
    for name, value in config.items():
        inner = value.items() if isinstance(value, dict) else [(name, value)]
        flat |= {"--" + key.replace("_", "-"): str(one) for key, one in inner}
    return flat
