"""The tables of the README and the docs, as Markdown, from measured figures alone.

Each function takes the result of every card and the rows of the ledger. Where nothing
was measured, the table stands there all the same and says so.
"""

from bench import workloads
from bench.baselines import OURS
from bench.cases import GPT2, LECTURE, Case
from bench.report import targets
from bench.workloads import (
    GPT2_16K,
    GPT2_64K,
    GPT2_DROPOUT,
    LECTURE_DROPOUT,
    ModuleCase,
    OptimizerCase,
)

NOT_MEASURED = "not measured"
LEAST_SHARE = 0.01  # of a replay, for a row of its own
UNFAIR = ("reference", "torch deterministic")  # not what is meant by the best peer

# label, case: what the README shows
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
    ("AdamW", OptimizerCase("adamw", GPT2, n_layer=12)),
    ("a block, lecture", ModuleCase("Block", LECTURE, config={"dropout": 0.2})),
)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_card(results: list[dict], table, stage: str | None = None) -> str:
    """`table` of each GPU that has measured `stage` under a line that names it, or of none."""
    if stage:
        results = [result for result in results if of_stage(result, stage)]
    if not results:
        return table(None)
    return "\n\n".join(f"{provenance(result, stage)}\n\n{table(result)}" for result in results)


def provenance(result: dict, stage: str | None = None) -> str:
    """On what, with what and when the rows were measured, or a stage's."""
    card, ceilings = result["card"], result["ceilings"]
    measured = result["rows"]
    if stage in result["stages"]:
        measured = [result["stages"][stage]]
    commits = sorted({one["commit"] for one in measured})
    dates = sorted({one["date"] for one in measured} or {result["date"]})
    return (
        f"{card['name']}, driver {card['driver']}, torch {card['torch']}, triton {card['triton']}, "
        f"{' and '.join(dates)}, commit {', '.join(commits) or 'unknown'}; measured ceilings: "
        f"copy {ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s, "
        f"bf16 product {ceilings['matmul_flops_per_second'] / 1e12:.0f} TFLOP/s"
    )


def card(results, ledger) -> str:
    lines = "\n".join(f"- {provenance(result)}" for result in results)
    return lines or f"- every figure that needs a card: {NOT_MEASURED}"


def peers(results, ledger) -> str:
    """For the README: ours against the best peer, per pass, and the share of the ceiling."""
    return by_card(results, _peers) if results else f"- {NOT_MEASURED}"


def _peers(result: dict) -> str:
    header = ["", "shape", *workloads.PASSES, "share of the ceiling, both"]
    rows = []
    for label, case in HEADLINES:
        passes = [targets.rows_of(result["rows"], case, name) for name in workloads.passes(case)]
        ours = next((row for row in passes[-1] if row["rival"] == OURS), None)
        share = NOT_MEASURED if ours is None else f"{100 * ours['ceiling']:.0f}%"
        cells = [_times_best(rows_of_pass) for rows_of_pass in passes]
        empty = [""] * (len(workloads.PASSES) - len(cells))  # where but one pass compares
        rows.append([label, workloads.shape(case), *empty, *cells, share])
    return markdown(header, rows)


def times_best(rows: list[dict]) -> tuple[float, str] | None:
    """How many times faster than the best peer, and that peer's name."""
    fair = [row["rival"] for row in rows if not row["rival"].startswith((OURS, *UNFAIR))]
    ours = [row for row in rows if row["rival"] == OURS]
    return targets.times_faster_than(*fair)(ours[0], rows) if ours else None


def _times_best(rows: list[dict]) -> str:
    best = times_best(rows)
    return NOT_MEASURED if best is None else f"{best[0]:.2f}x {best[1]}"


def reached(results, ledger) -> str:
    return by_card(results, _reached)


def _reached(result: dict | None) -> str:
    header = ["target", "operation", "shape", "pass", "at least", "measured", "against", "reached"]
    rows = []
    for target in targets.TARGETS:
        verdict = targets.evaluate(target, result["rows"] if result else [])
        measured = NOT_MEASURED if verdict.value is None else f"{verdict.value:.2f}"
        answer = {None: "", True: "yes", False: "no"}[verdict.reached]
        case = target.case
        what = [target.what, case.operation, workloads.shape(case), target.direction]
        rows.append([*what, f"{target.at_least:.2f}", measured, verdict.against, answer])
    return markdown(header, rows)


def speed(results, ledger) -> str:
    """Every figure: medians, the 20th and 80th percentile, the kernel that took longest."""
    return by_card(results, _speed)


def _speed(result: dict | None) -> str:
    parts = []
    for operation in dict.fromkeys(case.operation for case in workloads.CARD):
        passes = next(
            workloads.passes(case) for case in workloads.CARD if case.operation == operation
        )
        rows = [row for row in result["rows"] if row["operation"] == operation] if result else []
        rows = [row for row in rows if row["pass"] in passes]
        lines = [_speed_line(row) for row in rows]
        header = ["shape", "pass", "who", "µs", "p20-p80", "GB/s", "TFLOP/s", "ceiling", "kernel"]
        parts.append(f"**{operation}**\n\n{markdown(header, lines) if lines else NOT_MEASURED}")
    return "\n\n".join(parts)


def _speed_line(row: dict) -> list[str]:
    kernel = (row.get("kernels") or [""])[0].replace("|", "\\|")
    return [
        f"{row['shape']}, {row['precision']}",
        row["pass"],
        row["rival"],
        f"{row['median_us']:,.1f}",
        f"{row['p20_us']:,.1f}-{row['p80_us']:,.1f}",
        f"{row['gb_s']:,.0f}",
        f"{row['tflop_s']:,.0f}" if "tflop_s" in row else "",
        f"{100 * row['ceiling']:.0f}%",
        f"`{kernel[:60]}`" if kernel else "",
    ]


def proof(results, ledger) -> str:
    return by_card(results, _proof)


def _proof(result: dict | None) -> str:
    if result is None:
        return f"- make prove on a card: {NOT_MEASURED}"
    rows = [
        [name, stage["state"], stage["says"].replace("|", "\\|"), stage["commit"]]
        for name, stage in result["stages"].items()
    ]
    return markdown(["stage", "state", "what it says", "commit"], rows)


def of_stage(result: dict | None, name: str) -> list[dict]:
    """The rows that the parts of a stage of `make prove` have measured."""
    stage = result["stages"].get(name, {"parts": {}}) if result else {"parts": {}}
    found = [part["figures"] for part in stage["parts"].values() if "figures" in part]
    return [row for one in found for row in (one if isinstance(one, list) else [one])]


def steps(results, ledger) -> str:
    """Whole training steps: ms, also as a multiple of our fastest, tokens per second, memory."""
    return by_card(results, _steps, "step")


def _steps(result: dict | None) -> str:
    rows = of_stage(result, "step")
    if not rows:
        return f"- training steps on a GPU: {NOT_MEASURED}"
    rows.sort(key=lambda row: (row["preset"], row["milliseconds"]))
    ours = {row["preset"]: row["milliseconds"] for row in rows[::-1] if row["kernels"] == OURS}
    header = ["preset", "batch", "who", "ms", "time", "tokens/s", "MFU", "peak memory, GiB"]
    lines = [
        [
            row["preset"],
            f"{row['batch_size']} x {row['block_size']:,}",
            f"{row['kernels']}{' compiled' if row['compile'] else ''}, {row['step']}",
            f"{row['milliseconds']:.2f}",
            f"{row['milliseconds'] / ours[row['preset']]:.2f}x" if row["preset"] in ours else "",
            f"{row['tokens_per_second']:,.0f}",
            f"{100 * row['mfu']:.0f}%",
            f"{row['peak_memory_bytes'] / 2**30:.1f}",
        ]
        for row in rows
    ]
    return markdown(header, lines)


def profile(results, ledger) -> str:
    """Where the time of one replay of a captured step goes."""
    return by_card(results, _profile, "profile")


def _profile(result: dict | None) -> str:
    rows = of_stage(result, "profile")
    if not rows:
        return f"- one replay of a step on a GPU: {NOT_MEASURED}"
    lines = [
        [
            row["preset"],
            f"`{row['kernel']}`" if row["kernel"].endswith("_kernel") else row["kernel"],
            str(row["launches"]),
            f"{row['microseconds']:,.0f}",
            f"{100 * row['share']:.1f}%",
        ]
        for row in rows
        if row["share"] >= LEAST_SHARE
    ]
    return markdown(["preset", "kernel", "launches", "µs", "share"], lines)


def losses(results, ledger) -> str:
    """Training to nanoGPT's best loss on tiny shakespeare."""
    return by_card(results, _losses, "loss")


def _losses(result: dict | None) -> str:
    stage = result["stages"].get("loss", {"parts": {}}) if result else {"parts": {}}
    there = {name: part["figures"] for name, part in stage["parts"].items() if "figures" in part}
    if not there:
        return f"- time to a loss on a GPU: {NOT_MEASURED}"
    lines = [
        [name, f"{row['val_loss']:.4f}", f"{row['step']:,}", f"{row['seconds']:.2f}"]
        for name, row in there.items()
    ]
    return markdown(["run", "loss", "steps", "seconds of training"], lines)


def decode(results, ledger) -> str:
    """Tokens per second of `generate` on a card; on a CPU they are the table of bench/recipes/decode.py."""
    return by_card(results, _decode, "decode")


def _decode(result: dict | None) -> str:
    rows = of_stage(result, "decode")
    if not rows:
        return f"- generating on a card: {NOT_MEASURED}"
    return markdown(list(rows[0]), [[str(value) for value in row.values()] for row in rows])


def ladder(results, ledger) -> str:
    """The rungs of docs/ladder, each operation's in the order in which they are climbed."""
    return by_card(results, _ladder, "ladder")


def rungs(result: dict | None) -> list[dict]:
    """The rows of figures of the rungs of docs/ladder."""
    return of_stage(result, "ladder")


def _ladder(result: dict | None) -> str:
    rows = rungs(result)
    if not rows:
        return f"- the rungs on a card: {NOT_MEASURED}"
    header = ["operation", "shape", "pass", "rung", "µs", "p20-p80", "GB/s", "TFLOP/s", "ceiling"]
    return markdown(header, [[row["operation"], *_speed_line(row)[:-1]] for row in rows])


def kernels(results, ledger) -> str:
    """What the compiled kernels are made of: the most registers, the fewest blocks."""
    if not ledger:
        return f"- compiled kernels: {NOT_MEASURED}"
    version, rows = ledger
    architectures = sorted({row["target"] for row in rows}, key=int)
    names = dict.fromkeys(row["key"].partition("(")[0] for row in rows)
    lines = []
    for name in names:
        of_name = [row for row in rows if row["key"].partition("(")[0] == name]
        cells = [_compiled([r for r in of_name if r["target"] == one]) for one in architectures]
        lines.append([f"`{name}`", *cells])
    header = [f"triton {version}", *(f"sm_{one}" for one in architectures)]
    return markdown(header, lines)


def summed_up(results, ledger) -> str:
    """The ledger in four lines for the README."""
    if not ledger:
        return f"- compiled kernels: {NOT_MEASURED}"
    version, rows = ledger
    architectures = sorted({row["target"] for row in rows}, key=int)

    def line(name, count):
        counts = [count([r for r in rows if r["target"] == one]) for one in architectures]
        return [name, *(f"{count:,}" for count in counts)]

    lines = [
        line("kernels, a tile and a dtype each", len),
        line("spilled registers", lambda some: sum(row["spills"] for row in some)),
        line("atomic instructions", lambda some: sum(row["atomics"] for row in some)),
        line("tensor-core instructions", lambda some: sum(sum(r["tensor"].values()) for r in some)),
    ]
    return markdown([f"triton {version}", *(f"sm_{one}" for one in architectures)], lines)


def _compiled(rows: list[dict]) -> str:
    if not rows:
        return ""
    registers, shared = max(row["registers"] for row in rows), max(row["shared"] for row in rows)
    spills = sum(row["spills"] for row in rows)
    said = f"{registers} registers, {shared:,} bytes"
    return said + (f", {spills} spills" if spills else "")


def of_program(result: dict | None) -> str:
    """A table that another program has measured: its rows as they are."""
    if result is None:
        return f"- {NOT_MEASURED}"
    lines = [[str(value) for value in row.values()] for row in result["rows"]]
    named = f"{result['machine']}, {result['date']}, commit {result['commit']}"
    return f"{named}\n\n{markdown(list(result['rows'][0]), lines)}"


# tables that a program of that name measures and leaves in bench/results/
PROGRAMS = (
    "quickstart",
    "decode",
    "int8",
    "machinery",
    "reliability",
    "ladder",
    "exercises-arithmetic",
    "exercises-features",
    "exercises-finetune",
    "exercises-pairs",
    "exercises-stages",
)
TABLES = {
    "card": card,
    "peers": peers,
    "targets": reached,
    "speed": speed,
    "proof": proof,
    "steps": steps,
    "profile": profile,
    "losses": losses,
    "decode-card": decode,
    "ladder-card": ladder,
    "ledger": kernels,
    "ledger-summary": summed_up,
}
