"""The tables of the README and the docs, as Markdown, generated from measured results.

Each function of `GPU_TABLES` takes the rows that a stage of `make prove` measured on one GPU, or
its whole result, and each of `LEDGER_TABLES` the rows of the ledger; a table is a list of dicts of
column title -> cell. `RECIPE_TABLES` are printed as their file has them.
"""

from collections.abc import Callable, Iterable
from functools import partial

from bench.baselines import OURS
from bench.workloads import timed
from bench.workloads.operations import GPT2, LECTURE, Case, Update
from bench.workloads.timed import GPT2_16K, GPT2_64K, GPT2_DROPOUT, LECTURE_DROPOUT
from gpt import UserError

NOT_MEASURED = "not measured"
MIN_FRACTION = 0.01  # of a training step, for a kernel to have a row of its own
NOT_A_PEER = (OURS, "reference", "torch deterministic")

# label, case: the rows of the README's table
HEADLINES = (
    ("LayerNorm", Case("layer_norm", GPT2_64K)),
    ("add + LayerNorm", Case("add_layer_norm", GPT2_64K)),
    ("attention", Case("attention", GPT2)),
    ("attention, long", Case("attention", GPT2_16K)),
    ("attention with dropout", Case("attention", GPT2, options=GPT2_DROPOUT)),
    ("attention, lecture", Case("attention", LECTURE, options=LECTURE_DROPOUT)),
    ("feed-forward", Case("feed_forward", GPT2_64K, options={"activation": "gelu"})),
    ("cross entropy", Case("cross_entropy", GPT2)),
    ("head + cross entropy", Case("linear_cross_entropy", GPT2)),
    ("AdamW", Update("adamw", GPT2, n_layer=12)),
)


def render(name: str, gpus: list[dict], recipes: dict, ledger) -> str:
    """The Markdown of one table."""
    if name == "gpu":
        return "\n".join(f"- {provenance(result)}" for result in gpus) or f"- GPU: {NOT_MEASURED}"
    if name == "speed":
        return "\n\n".join(map(speed, gpus)) or f"- {NOT_MEASURED} on a GPU"
    if name in GPU_TABLES:
        to_rows, stage = GPU_TABLES[name]
        tables = [
            f"{provenance(result, stage)}\n\n{markdown(rows)}"
            for result in gpus
            if (rows := to_rows(stage_rows(result, stage) if stage else result))
        ]
        return "\n\n".join(tables) or f"- {NOT_MEASURED} on a GPU"
    if name in LEDGER_TABLES and ledger:
        return ledger_table(LEDGER_TABLES[name], *ledger)
    if name in recipes:
        result = recipes[name]
        return "{machine}, {date}, commit {commit}\n\n".format(**result) + markdown(result["rows"])
    if name in NAMES:
        return f"- {NOT_MEASURED}"
    raise UserError(f"there is no table {name!r}; choose one of {', '.join(NAMES)}")


def markdown(rows: list[dict]) -> str:
    """A Markdown table; the keys of the first row are the column titles."""
    lines = [rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def provenance(result: dict, stage: str | None = None) -> str:
    """The GPU, versions, dates and commits of the rows of a result, or of one of its stages."""
    measured = [result["stages"][stage]] if stage else result["rows"]
    commits = sorted({one["commit"] for one in measured})
    dates = sorted({one["date"] for one in measured} or {result["date"]})
    ceilings = result["ceilings"]
    gpu = "{name}, driver {driver}, torch {torch}, triton {triton}".format(**result["gpu"])
    return (
        f"{gpu}, {' and '.join(dates)}, commit {', '.join(commits) or 'unknown'}; measured peak: "
        f"copy {ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s, "
        f"bf16 matrix product {ceilings['matmul_flops_per_second'] / 1e12:.0f} TFLOP/s"
    )


def table(columns: dict[str, str], rows: Iterable[dict]) -> list[dict]:
    """The rows of a table. columns: title -> format of the measured row."""
    return [{title: cell.format(**row) for title, cell in columns.items()} for row in rows]


def peers(result: dict) -> list[dict]:
    """The speedup over the best peer for each pass, and the fraction of peak of the last pass."""
    rows = []
    for label, case in HEADLINES:
        row = {"": label, "shape": timed.shape(case)} | dict.fromkeys(timed.PASSES, "")
        for direction in timed.passes(case):
            found = rows_of(result["rows"], case, direction)
            best, ours = peer_speedup(found), ours_of(found)
            cell = f"{best[0]:.2f}x {best[1]}" if best else NOT_MEASURED
            row["both" if direction == timed.STEP else direction] = cell
        fraction = f"{ours['ceiling']:.0%}" if ours else NOT_MEASURED
        rows.append(row | {"fraction of peak, both": fraction})
    return rows


def peer_speedup(rows: list[dict]) -> tuple[float, str] | None:
    """The speedup over the best peer, and that peer's name."""
    ours = ours_of(rows)
    others = [row for row in rows if not row["implementation"].startswith(NOT_A_PEER)]
    if ours is None or not others:
        return None
    best = min(others, key=lambda row: row["median_us"])
    return best["median_us"] / ours["median_us"], best["implementation"]


def rows_of(rows: list[dict], case, direction: str) -> list[dict]:
    """The rows of all implementations of one case and pass."""
    key = (case.operation, timed.shape(case), case.precision, direction)
    names = ("operation", "shape", "precision", "pass")
    return [row for row in rows if tuple(row[name] for name in names) == key]


def ours_of(rows: list[dict]) -> dict | None:
    return next((row for row in rows if row["implementation"] == OURS), None)


def speed(result: dict) -> str:
    """Every measurement, in a table for each operation."""
    columns = {
        "shape": "{shape}, {precision}",
        "pass": "{pass}",
        "implementation": "{implementation}",
        "µs": "{median_us:,.1f}",
        "p20-p80": "{p20_us:,.1f}-{p80_us:,.1f}",
        "GB/s": "{gb_s:,.0f}",
        "TFLOP/s": "{tflop_s}",
        "fraction of peak": "{ceiling:.0%}",
    }
    parts, missing = [provenance(result)], []
    for operation, passes in {case.operation: timed.passes(case) for case in timed.GPU}.items():
        rows = [
            row | {"tflop_s": f"{row['tflop_s']:,.0f}" if "tflop_s" in row else ""}
            for row in result["rows"]
            if row["operation"] == operation and row["pass"] in passes
        ]
        if rows:
            parts.append(f"**{operation}**\n\n{markdown(table(columns, rows))}")
        else:
            missing.append(operation)
    return "\n\n".join(parts + [f"{NOT_MEASURED}: {', '.join(missing)}"] * bool(missing))


def stage_rows(result: dict, name: str) -> list[dict]:
    """The rows that a stage of `make prove` measured, each with the name of its part as `run`."""
    rows = []
    for part, outcome in result["stages"].get(name, {"parts": {}})["parts"].items():
        measured = outcome.get("figures", [])
        measured = measured if isinstance(measured, list) else [measured]
        rows += [row | {"run": part} for row in measured]
    return rows


def proof(result: dict) -> list[dict]:
    columns = {key: f"{{{key}}}" for key in ("stage", "state", "message", "commit")}
    return table(columns, ({"stage": name} | one for name, one in result["stages"].items()))


def steps(rows: list[dict]) -> list[dict]:
    """Whole training steps, the fastest of each preset first."""
    columns = {
        "preset": "{preset}",
        "batch": "{batch_size} x {block_size:,}",
        "implementation": "{kernels}{compiled}, {step}",
        "ms": "{milliseconds:.2f}",
        "relative time": "{relative}",
        "tokens/s": "{tokens_per_second:,.0f}",
        "MFU": "{mfu:.0%}",
        "peak memory, GiB": "{gib:.1f}",
    }
    rows = sorted(rows, key=lambda row: (row["preset"], row["milliseconds"]))
    ours = {row["preset"]: row["milliseconds"] for row in rows[::-1] if row["kernels"] == OURS}
    measured = []
    for row in rows:
        baseline = ours.get(row["preset"])
        relative = f"{row['milliseconds'] / baseline:.2f}x" if baseline else ""
        more = {"compiled": " compiled" * row["compile"], "relative": relative}
        measured.append(row | more | {"gib": row["peak_memory_bytes"] / 2**30})
    return table(columns, measured)


def profile(rows: list[dict]) -> list[dict]:
    """The time of each kernel in one replay of a captured training step."""
    columns = {
        "preset": "{preset}",
        "kernel": "{quote}{kernel}{quote}",
        "launches": "{launches}",
        "µs": "{microseconds:,.0f}",
        "fraction of the step": "{share:.1%}",
    }
    rows = [row | {"quote": "`" * row["kernel"].endswith("_kernel")} for row in rows]
    return table(columns, (row for row in rows if row["share"] >= MIN_FRACTION))


# the time of training to nanoGPT's best validation loss on tiny shakespeare
LOSSES = {
    "run": "{run}",
    "validation loss": "{val_loss:.4f}",
    "steps": "{step:,}",
    "training time, s": "{seconds:.2f}",
}


def ledger_table(to_cells: Callable, version: str, rows: list[dict]) -> str:
    """One row per kernel or property, one column per architecture."""
    targets = sorted({row["target"] for row in rows}, key=int)
    cells = {label: {f"triton {version}": label} for label in to_cells(rows)}
    for target in targets:
        found = to_cells([row for row in rows if row["target"] == target])
        for label, row in cells.items():
            row[f"sm_{target}"] = found.get(label, "")
    return markdown(list(cells.values()))


def kernel_cells(rows: list[dict]) -> dict[str, str]:
    """For each kernel, the most registers and shared memory that a variant of it uses."""
    variants: dict[str, list[dict]] = {}
    for row in rows:
        variants.setdefault(f"`{row['key'].partition('(')[0]}`", []).append(row)
    found = {}
    for name, some in variants.items():
        registers, shared = (max(row[key] for row in some) for key in ("registers", "shared"))
        found[name] = f"{registers} registers, {shared:,} bytes"
    return found


def summary_cells(rows: list[dict]) -> dict[str, str]:
    counts = {
        "compiled kernel variants": len(rows),
        "spilled registers": sum(row["spills"] for row in rows),
        "atomic instructions": sum(row["atomics"] for row in rows),
        "tensor-core instructions": sum(sum(row["tensor"].values()) for row in rows),
    }
    return {label: f"{count:,}" for label, count in counts.items()}


GPU_TABLES = {  # name -> rows of a table, and the stage of make prove that measured them
    "peers": (peers, None),
    "proof": (proof, None),
    "steps": (steps, "step"),
    "profile": (profile, "profile"),
    "losses": (partial(table, LOSSES), "loss"),
}
LEDGER_TABLES = {"ledger": kernel_cells, "ledger-summary": summary_cells}
RECIPE_TABLES = (
    *("laptop", "laptop-steps", "laptop-trials", "quickstart", "decode", "decode-gpu", "ladder"),
    *("exercises-arithmetic", "exercises-features", "exercises-finetune"),
)
NAMES = ("gpu", "speed", *GPU_TABLES, *LEDGER_TABLES, *RECIPE_TABLES)
