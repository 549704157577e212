"""What the kernels have to reach on a card, and whether the measured figures say that they do.

A target compares ours with the best of some rivals in the same run, or with a ceiling that was
measured in the same run. Its case is one of `bench.workloads`; where that was not measured, neither
is the target.
"""

from collections.abc import Callable
from typing import NamedTuple

from bench import workloads
from bench.baselines import OURS, SDPA
from bench.cases import GPT2, LECTURE, Case
from bench.workloads import (
    GPT2_4K,
    GPT2_8K,
    GPT2_16K,
    GPT2_64K,
    GPT2_DROPOUT,
    LECTURE_DROPOUT,
    OptimizerCase,
)

Rows = list[dict]
Measure = Callable[[dict, Rows], tuple[float, str] | None]  # our row, the rivals' -> value, of what


class Target(NamedTuple):
    what: str
    case: Case
    direction: str  # a pass
    at_least: float
    measure: Measure


class Verdict(NamedTuple):
    target: Target
    value: float | None  # None: not measured
    against: str  # the rival that it is a ratio to, or the ceiling

    @property
    def reached(self) -> bool | None:
        return None if self.value is None else self.value >= self.target.at_least

    @property
    def sentence(self) -> str:
        what, case, direction, at_least, _ = self.target
        says = {None: "not measured", True: "reached", False: "missed"}[self.reached]
        value = "" if self.value is None else f" {self.value:.2f} of"
        place = f"{case.operation} {workloads.shape(case)} {direction}"
        return f"{says}:{value} {at_least:.2f}, {what}, {place}, {self.against}"


def times_faster_than(*rivals: str) -> Measure:
    """Their median over ours, of the fastest of `rivals` that was measured."""

    def measure(ours, rows):
        there = [row for row in rows if row["rival"] in rivals]
        if not there:
            return None
        best = min(there, key=lambda row: row["median_us"])
        return best["median_us"] / ours["median_us"], best["rival"]

    return measure


def times_less_memory_than(rival: str) -> Measure:
    def measure(ours, rows):
        peaks = [row["peak_mb"] for row in rows if row["rival"] == rival]
        return (peaks[0] / ours["peak_mb"], f"{rival}'s peak memory") if peaks else None

    return measure


def share_of_ceiling(ours, rows):
    return ours["ceiling"], "the measured ceiling"


def terabytes_per_second(ours, rows):
    return ours["gb_s"] / 1000, "TB/s"


def _layer_norm():
    case = Case("layer_norm", GPT2_64K)
    yield Target("share of copy bandwidth", case, "forward", 0.85, share_of_ceiling)
    yield Target("LayerNorm", case, "backward", 2.0, times_faster_than("torch.compile"))
    fused = Case("add_layer_norm", GPT2_64K)
    yield Target("fused against apart", fused, "both", 1.8, times_faster_than("torch"))
    for direction in ("forward", "backward"):
        yield Target(
            "LayerNorm", Case("layer_norm", LECTURE), direction, 1.0, times_faster_than("torch")
        )


def _attention():
    sdpa = times_faster_than(*SDPA)
    for sizes, at_least in ((GPT2, 1.05), (GPT2_4K, 1.0), (GPT2_8K, 1.0), (GPT2_16K, 1.0)):
        yield Target("attention", Case("attention", sizes), "forward", at_least, sdpa)
    for sizes in (GPT2, GPT2_4K, GPT2_8K, GPT2_16K):
        yield Target("attention", Case("attention", sizes), "backward", 0.8, sdpa)
    for sizes, options in ((GPT2, GPT2_DROPOUT), (LECTURE, LECTURE_DROPOUT)):
        case = Case("attention", sizes, options=options)
        yield Target("attention with dropout", case, "both", 1.3, sdpa)
    yield Target(
        "against the deterministic mode",
        Case("attention", GPT2),
        "both",
        1.4,
        times_faster_than("torch deterministic"),
    )
    lecture = Case("attention", LECTURE, options=LECTURE_DROPOUT)
    yield Target("against the lecture's", lecture, "both", 20.0, times_faster_than("reference"))


def _feed_forward():
    compiled = times_faster_than("torch.compile")
    gelu = Case("feed_forward", GPT2_64K, options={"activation": "gelu"})
    yield Target("feed-forward", gelu, "forward", 1.08, compiled)
    yield Target("feed-forward", gelu, "backward", 1.06, compiled)
    relu = Case("feed_forward", LECTURE, options={"activation": "relu"})
    yield Target("feed-forward", relu, "both", 1.0, compiled)


def _cross_entropy():
    case = Case("cross_entropy", GPT2)
    yield Target("cross entropy", case, "both", 2.0, times_faster_than("torch.compile"))
    yield Target("cross entropy's bandwidth", case, "both", 3.2, terabytes_per_second)
    for sizes in (GPT2, GPT2_64K):
        linear = Case("linear_cross_entropy", sizes)
        yield Target("head and loss", linear, "both", 1.0, times_faster_than("torch"))
        yield Target("head and loss, memory", linear, "both", 8.0, times_less_memory_than("torch"))


def _adamw():
    case = OptimizerCase("adamw", GPT2, n_layer=12)
    yield Target("share of copy bandwidth", case, workloads.STEP, 0.88, share_of_ceiling)
    yield Target("AdamW", case, workloads.STEP, 1.0, times_faster_than("torch fused"))


TARGETS: tuple[Target, ...] = (
    *_layer_norm(),
    *_attention(),
    *_feed_forward(),
    *_cross_entropy(),
    *_adamw(),
)


def evaluate(target: Target, rows: Rows) -> Verdict:
    """`target` held against the rows of one result."""
    found = rows_of(rows, target.case, target.direction)
    ours = [row for row in found if row["rival"] == OURS]
    measured = target.measure(ours[0], found) if ours else None
    return Verdict(target, *(measured or (None, "")))


def rows_of(rows: Rows, case, direction: str) -> Rows:
    """The rows of one case and pass: ours and the rivals'."""
    key = (case.operation, workloads.shape(case), case.precision, direction)
    names = ("operation", "shape", "precision", "pass")
    return [row for row in rows if tuple(row[name] for name in names) == key]
