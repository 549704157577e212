"""What a compiled kernel does in a launch of the ledger's size, counted by executing some programs.

The operands are zeros, which cost no memory until they are written; caches of keys are full. Counts
are means over `SAMPLES` programs, spread over the grid: exact where all programs do the same work.
"""

import functools
import itertools
import math
import multiprocessing
from collections import Counter
from collections.abc import Iterable

import torch

from bench.ledger import compiled
from bench.workloads.operations import CASES, TOKENS, UPDATES
from bench.workloads.steps import STEPS
from kernels.common.launch import Launch
from tests.ptx.execute import execute
from tests.ptx.memory import Fault, Unsupported

SAMPLES = 6
TABLES = ("addresses_ptr", "ranges_ptr")  # operands that decide what work there is
COUNTS = ("load bytes", "load sectors", "store bytes", "store sectors", "bank conflicts")
COUNTS += ("tensor-core FLOPs",)
KINDS = {
    "global memory": ("ld.global", "st.global", "cp.async.c", "cp.async.bulk.tensor"),
    "shared memory": ("ld.shared", "st.shared", "ldmatrix", "stmatrix"),
    "tensor cores": ("mma", "wgmma.mma"),
    "special functions": ("ex2", "lg2", "rcp", "rsqrt", "sqrt", "div.full", "div.approx"),
    "between threads": ("shfl", "redux", "elect", "bar"),
    "moves": ("mov", "selp", "prmt", "cvt"),
    "control": ("bra", "ret", "setp"),
}


def counted(targets: Iterable[str], kernels: Iterable[str]) -> dict[tuple[str, str], dict | str]:
    """(target, key) -> the counts of every kernel whose name contains one of `kernels`."""
    cases = (*CASES, *UPDATES, *TOKENS, *STEPS)
    jobs = [(target, kernels, cases[i::8]) for target in targets for i in range(8)]
    found: dict = {}
    with multiprocessing.get_context("spawn").Pool(compiled.PROCESSES) as pool:
        for some in pool.starmap(_counted, jobs, chunksize=1):
            for place, counts in some.items():
                found.setdefault(place, counts)
    return dict(sorted(found.items(), key=lambda item: (int(item[0][0]), item[0][1])))


def _counted(target: str, kernels, cases) -> dict:
    compiled.set_offline_driver(target)
    found: dict = {}
    for case, architecture in itertools.product(cases, compiled.architectures(target)):
        for one in compiled.record(case, architecture):
            if compiled.is_selected(compiled.name(one), kernels):
                kernel = compiled.compile_launch(one)
                place = target, compiled.describe(one, kernel)
                if place not in found:
                    found[place] = executed(one, kernel)
    return found


def executed(one: Launch, kernel) -> dict | str:
    """The counts of a mean program, or why there are none."""
    named = dict(zip(one.kernel.arg_names, one.arguments, strict=False))
    for table in TABLES:
        if named.get(table) is not None:
            return f"not executed: its work depends on {table}"
    if compiled.name(one) == "gemm_kernel" and one.options["DESCRIBED"]:
        return "not executed: a program walks over thousands of tiles"
    one = one._replace(arguments=tuple(map(zeros, one.arguments)))
    if "position_ptr" in named:  # of the new token: the last one
        one.arguments[list(named).index("position_ptr")].fill_(named["T"] - 1)
    programs = math.prod(one.grid)
    sample = sorted({int(programs * (0.618034 * i % 1)) for i in range(SAMPLES)})  # golden ratio
    counts: Counter = Counter()
    try:
        execute(one, kernel, kernel.asm["ptx"], sample, counts)
    except Unsupported as instruction:
        return f"not executed: {instruction}"
    except Fault as fault:
        return f"fault: {fault}"
    by_kind: Counter[str] = Counter()
    for opcode in [key for key in counts if isinstance(key, tuple)]:
        by_kind[kind(opcode)] += counts[opcode]
    total = {"instructions": by_kind.total()} | by_kind | {key: counts[key] for key in COUNTS}
    return {"programs": programs} | {key: round(n / len(sample)) for key, n in total.items() if n}


@functools.cache
def kind(opcode: tuple[str, ...]) -> str:
    """The kind of an instruction: one of `KINDS`, or floating-point or integer arithmetic."""
    name = ".".join(opcode)
    for one, names in KINDS.items():
        if name.startswith(names):
            return one
    return "floating point" if "f" in opcode[-1] else "integers"


def zeros(value):
    """Zeros for a tensor without storage, with its strides."""
    if not isinstance(value, torch.Tensor):
        return value
    extent = value.untyped_storage().nbytes() // value.element_size()
    storage = torch.zeros(extent, dtype=value.dtype)
    return storage.as_strided(value.shape, value.stride(), value.storage_offset())
