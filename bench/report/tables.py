"""The tables of the README and the docs, as Markdown, generated from measured results.

Each function of `GPU_TABLES` takes the result of one GPU, and each of `LEDGER_TABLES` the Triton
version and rows of the ledger; they return the rows of a table as dicts of column title -> cell.
`RECIPE_TABLES` are printed as their recipe wrote them.
"""

from functools import partial

from bench.baselines import OURS
from bench.workloads import timed
from bench.workloads.operations import BLOCK, GPT2, LECTURE, Case, Update
from bench.workloads.timed import GPT2_16K, GPT2_64K, GPT2_DROPOUT, LECTURE_DROPOUT
from gpt import UserError

NOT_MEASURED = "not measured"
MIN_FRACTION = 0.01  # of a training step, for a kernel to have a row of its own
GPU_PICTURES = ("speedup", "peak")
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
    ("a block, lecture", Case(BLOCK, LECTURE, options={"dropout": 0.2})),
)


def markdown(rows: list[dict]) -> str:
    """A Markdown table; the keys of the first row are the column titles."""
    lines = [rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def provenance(result: dict, stage: str | None = None) -> str:
    """The GPU, versions, dates and commits of the rows of a result, or of one of its stages."""
    gpu, ceilings = result["gpu"], result["ceilings"]
    measured = [result["stages"][stage]] if stage else result["rows"]
    commits = sorted({one["commit"] for one in measured})
    dates = sorted({one["date"] for one in measured} or {result["date"]})
    return (
        f"{gpu['name']}, driver {gpu['driver']}, torch {gpu['torch']}, triton {gpu['triton']}, "
        f"{' and '.join(dates)}, commit {', '.join(commits) or 'unknown'}; measured peak: "
        f"copy {ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s, "
        f"bf16 matrix product {ceilings['matmul_flops_per_second'] / 1e12:.0f} TFLOP/s"
    )


def render(name: str, gpus: list[dict], recipes: dict, ledger, links: str) -> str:
    """The Markdown of one table. links: the folder of pictures, relative to the document."""
    if name == "gpu":
        return "\n".join(f"- {provenance(result)}" for result in gpus) or f"- GPU: {NOT_MEASURED}"
    if name == "speed":
        return speed(gpus)
    if name == "pictures":
        lines = [
            f"![{result['gpu']['name']}: {kind}]({links}/{gpu_stem(result)}-{kind}.svg)"
            for result in gpus
            for kind in GPU_PICTURES
        ]
        return "\n\n".join(lines) or f"- pictures: {NOT_MEASURED}"
    if name in GPU_TABLES:
        return gpu_table(name, gpus)
    if name in LEDGER_TABLES:
        return ledger_table(name, ledger)
    if name in RECIPE_TABLES:
        return recipe_table(recipes.get(name))
    raise UserError(f"there is no table {name!r}; choose one of {', '.join(NAMES)}")


def gpu_table(name: str, gpus: list[dict]) -> str:
    """The table `name` of every GPU that measured it, each below a line that names the GPU."""
    to_rows, stage = GPU_TABLES[name]
    tables = []
    for result in gpus:
        if stage is None or stage in result["stages"]:
            rows = to_rows(result) if stage is None else to_rows(stage_rows(result, stage))
            if rows:
                tables.append(f"{provenance(result, stage)}\n\n{markdown(rows)}")
    return "\n\n".join(tables) or f"- {NOT_MEASURED} on a GPU"


def gpu_stem(result: dict) -> str:
    return "-".join(result["gpu"]["name"].lower().split())


def recipe_table(result: dict | None) -> str:
    """The rows of a recipe's result file, unchanged."""
    if result is None:
        return f"- {NOT_MEASURED}"
    machine = f"{result['machine']}, {result['date']}, commit {result['commit']}"
    return f"{machine}\n\n{markdown(result['rows'])}"


# --- operations on a GPU --------------------------------------------------------------------------


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
        fraction = f"{100 * ours['ceiling']:.0f}%" if ours else NOT_MEASURED
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


def speed(results: list[dict]) -> str:
    """Every measurement, in a table for each operation."""
    parts = []
    for result in results:
        parts.append(provenance(result))
        missing = []
        for operation in dict.fromkeys(case.operation for case in timed.GPU):
            case = next(case for case in timed.GPU if case.operation == operation)
            rows = [speed_row(row) for row in result["rows"] if row["operation"] == operation]
            rows = [row for row in rows if row["pass"] in timed.passes(case)]
            parts += [f"**{operation}**\n\n{markdown(rows)}"] if rows else []
            missing += [] if rows else [operation]
        parts += [f"{NOT_MEASURED}: {', '.join(missing)}"] if missing else []
    return "\n\n".join(parts) or f"- {NOT_MEASURED} on a GPU"


def speed_row(row: dict) -> dict:
    kernel = (row.get("kernels") or [""])[0][:60]
    return {
        "shape": f"{row['shape']}, {row['precision']}",
        "pass": row["pass"],
        "implementation": row["implementation"],
        "µs": f"{row['median_us']:,.1f}",
        "p20-p80": f"{row['p20_us']:,.1f}-{row['p80_us']:,.1f}",
        "GB/s": f"{row['gb_s']:,.0f}",
        "TFLOP/s": f"{row['tflop_s']:,.0f}" if "tflop_s" in row else "",
        "fraction of peak": f"{100 * row['ceiling']:.0f}%",
        "longest kernel": f"`{kernel}`" if kernel else "",
    }


# --- the stages of make prove ---------------------------------------------------------------------


def stage_rows(result: dict, name: str) -> list[dict]:
    """The rows that a stage of `make prove` measured; those of losses have the name of the run."""
    parts = result["stages"].get(name, {"parts": {}})["parts"]
    rows = []
    for part, outcome in parts.items():
        measured = outcome.get("figures", [])
        measured = measured if isinstance(measured, list) else [measured]
        rows += [row | {"run": part} if name == "loss" else row for row in measured]
    return rows


def proof(result: dict) -> list[dict]:
    names = ("state", "message", "commit")
    return [
        {"stage": stage, **{name: outcome[name] for name in names}}
        for stage, outcome in result["stages"].items()
    ]


def steps(rows: list[dict]) -> list[dict]:
    """Whole training steps, the fastest of each preset first."""
    rows = sorted(rows, key=lambda row: (row["preset"], row["milliseconds"]))
    ours = {row["preset"]: row["milliseconds"] for row in rows[::-1] if row["kernels"] == OURS}
    return [
        {
            "preset": row["preset"],
            "batch": f"{row['batch_size']} x {row['block_size']:,}",
            "implementation": f"{row['kernels']}{' compiled' * row['compile']}, {row['step']}",
            "ms": f"{row['milliseconds']:.2f}",
            "relative time": f"{row['milliseconds'] / ours[row['preset']]:.2f}x"
            if row["preset"] in ours
            else "",
            "tokens/s": f"{row['tokens_per_second']:,.0f}",
            "MFU": f"{100 * row['mfu']:.0f}%",
            "peak memory, GiB": f"{row['peak_memory_bytes'] / 2**30:.1f}",
        }
        for row in rows
    ]


def profile(rows: list[dict]) -> list[dict]:
    """The time of each kernel in one replay of a captured training step."""
    return [
        {
            "preset": row["preset"],
            "kernel": f"`{row['kernel']}`" if row["kernel"].endswith("_kernel") else row["kernel"],
            "launches": row["launches"],
            "µs": f"{row['microseconds']:,.0f}",
            "fraction of the step": f"{100 * row['share']:.1f}%",
        }
        for row in rows
        if row["share"] >= MIN_FRACTION
    ]


def losses(rows: list[dict]) -> list[dict]:
    """The time of training to nanoGPT's best validation loss on tiny shakespeare."""
    return [
        {
            "run": row["run"],
            "validation loss": f"{row['val_loss']:.4f}",
            "steps": f"{row['step']:,}",
            "training time, s": f"{row['seconds']:.2f}",
        }
        for row in rows
    ]


# --- the ledger -----------------------------------------------------------------------------------


def ledger_table(name: str, ledger: tuple[str, list[dict]] | None) -> str:
    """One row per kernel or property, one column per architecture."""
    if ledger is None:
        return f"- compiled kernels: {NOT_MEASURED}"
    version, rows = ledger
    architectures = sorted({row["target"] for row in rows}, key=int)
    lines = []
    for label, cell in LEDGER_TABLES[name](rows).items():
        line = {f"triton {version}": label}
        for one in architectures:
            line[f"sm_{one}"] = cell([row for row in rows if row["target"] == one])
        lines.append(line)
    return markdown(lines)


def kernel_cells(rows: list[dict]) -> dict:
    """For each kernel, the most registers and shared memory that a variant of it uses."""

    def cell(some: list[dict], name: str) -> str:
        some = [row for row in some if kernel_name(row) == name]
        if not some:
            return ""
        registers, shared = (max(row[key] for row in some) for key in ("registers", "shared"))
        spills = sum(row["spills"] for row in some)
        return f"{registers} registers, {shared:,} bytes" + f", {spills} spills" * bool(spills)

    return {f"`{name}`": partial(cell, name=name) for name in map(kernel_name, rows)}


def kernel_name(row: dict) -> str:
    return row["key"].partition("(")[0]


def summary_cells(rows: list[dict]) -> dict:
    counts = {
        "compiled kernel variants": lambda row: 1,
        "spilled registers": lambda row: row["spills"],
        "atomic instructions": lambda row: row["atomics"],
        "tensor-core instructions": lambda row: sum(row["tensor"].values()),
    }
    return {
        label: lambda some, count=count: f"{sum(map(count, some)):,}"
        for label, count in counts.items()
    }


GPU_TABLES = {  # name -> rows of a table, and the stage of make prove that measured them
    "peers": (peers, None),
    "proof": (proof, None),
    "steps": (steps, "step"),
    "profile": (profile, "profile"),
    "losses": (losses, "loss"),
    "decode-gpu": (list, "decode"),
}
LEDGER_TABLES = {"ledger": kernel_cells, "ledger-summary": summary_cells}
RECIPE_TABLES = (
    "quickstart",
    "decode",
    "int8",
    "reliability",
    "ladder",
    "exercises-arithmetic",
    "exercises-features",
    "exercises-finetune",
    "exercises-pairs",
    "exercises-stages",
)
NAMES = ("gpu", "speed", "pictures", *GPU_TABLES, *LEDGER_TABLES, *RECIPE_TABLES)
