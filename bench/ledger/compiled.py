"""Compiles the kernels that a workload launches, for an architecture that need not be present.

A workload runs unchanged and at full size on tensors without storage (PyTorch's FakeTensorMode),
while `kernels.common.launch.record` collects its launches. Triton's runtime then specialises and
compiles each of them behind a driver that knows only the architecture. So the ledger compiles what
a GPU would load: kernel, tile, divisibility and options have one source.
"""

import itertools
import multiprocessing
import os
import re
import warnings
from collections.abc import Iterable
from types import SimpleNamespace

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from triton import TritonError
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from bench.ledger import load_widths, sass
from bench.workloads.operations import CASES, TOKENS, UPDATES
from bench.workloads.steps import STEPS
from kernels import triton_ops
from kernels.common import launch

TARGETS = ("80", "90", "100", "120")  # sm_86 and sm_89 run sm_80's code
PROCESSES = 2  # a kernel takes 0.3 to 1 s of one core


def architectures(target: str) -> tuple[int, ...]:
    """The architectures that run the code compiled for `target`."""
    return (80, 86, 89) if target == "80" else (int(target),)


def set_offline_driver(target: str) -> None:
    """Let Triton compile for `target` without a GPU; the driver is replaced for good."""
    gpu = GPUTarget("cuda", int(target), 32)
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: gpu,
            get_current_device=lambda: gpu,  # the runtime caches compiled kernels by device
            get_current_stream=lambda device: 0,
        )
    )


def record(case, architecture: int) -> list[launch.Launch]:
    """Every launch of `case` on `architecture`."""
    with (
        launch.record(architecture) as launches,
        FakeTensorMode(allow_non_fake_inputs=True),
        warnings.catch_warnings(),
    ):
        # AdamW reads data pointers for its kernel, which is recorded and not launched
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        case.run(triton_ops.OPS, torch.device("cpu"))
    return [one._replace(arguments=tuple(map(_meta, one.arguments))) for one in launches]


def _meta(value):
    """A meta tensor for a fake one, whose data pointer Triton cannot read."""
    if not isinstance(value, FakeTensor):
        return value
    elements = value.untyped_storage().nbytes() // value.element_size()
    storage = torch.empty(elements, dtype=value.dtype, device="meta")
    return storage.as_strided(value.shape, value.stride(), value.storage_offset())


def rows(recorded: Iterable[tuple[str, int, launch.Launch]], target: str) -> list[dict]:
    """One row for every distinct kernel of the launches, (case, architecture, launch) each."""
    set_offline_driver(target)
    found: list[dict] = []
    measured: dict[str, dict] = {}  # by key
    for case, architecture, one in recorded:
        where = {"narrow": [], "architectures": [architecture], "cases": [case]}
        try:
            kernel = compile_launch(one)
        except (TritonError, RuntimeError, AssertionError) as error:
            # from the compiler's passes, or from its options: num_warps must be a power of two
            key = f"{name(one)} {_words(one.options)}"
            measured[key] = {"error": str(error).strip().partition("\n")[0]}
        else:
            key = describe(one, kernel)
            where["narrow"] = load_widths.narrow(one, kernel)
            if key not in measured:
                measured[key] = measure(kernel)
        found.append({"target": target, "key": key} | measured[key] | where)
    return _merged(found)


def _merged(rows: Iterable[dict]) -> list[dict]:
    """One row for each kernel: two cases, and two operations, may share it."""
    kept: dict[tuple, dict] = {}
    for row in rows:
        first = kept.setdefault((row["target"], row["key"]), row)
        for field in ("narrow", "architectures", "cases"):
            first[field] = sorted({*first[field], *row[field]})
    return list(kept.values())


def collect(targets: Iterable[str], kernels: Iterable[str]) -> list[dict]:
    """One row for every kernel of the workloads whose name contains one of `kernels`."""
    by_operation: dict[str, list] = {}
    for case in (*CASES, *UPDATES, *TOKENS, *STEPS):
        by_operation.setdefault(case.operation, []).append(case)
    jobs = [(target, cases, kernels) for cases in by_operation.values() for target in targets]
    os.environ.pop("TRITON_INTERPRET", None)  # read on import: interpreted kernels do not compile
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        results = pool.starmap(rows_of, jobs, chunksize=1)
    return in_order(_merged(itertools.chain(*results)))


def rows_of(target: str, cases, kernels: Iterable[str] = ()) -> list[dict]:
    """One row for every kernel of `cases` whose name contains one of `kernels`, by default all."""
    recorded = (
        (str(case), architecture, one)
        for case in cases
        for architecture in architectures(target)
        for one in record(case, architecture)
        if is_selected(name(one), kernels)
    )
    return rows(recorded, target)


def is_selected(name: str, kernels) -> bool:
    return not kernels or any(part in name.partition("(")[0] for part in kernels)


def in_order(rows) -> list[dict]:
    return sorted(rows, key=lambda row: (int(row["target"]), row["key"]))


def compile_launch(one: launch.Launch):
    """Specialise and compile a launch by Triton's runtime, without launching it."""
    return one.kernel.run(*one.arguments, grid=one.grid, warmup=True, **one.options)


def measure(kernel) -> dict:
    """The ledger's columns for one compiled kernel."""
    registers, code = sass.disassemble(kernel.asm["cubin"])
    row = {"shared": kernel.metadata.shared, "narrow": [], "registers": registers}
    row |= sass.counts(code)
    if overwritten := sass.overwritten(code):
        row["overwritten"] = overwritten
    return row | {"products": products(kernel.asm["ttir"])}


def products(ttir: str) -> int:
    """Number of `tl.dot` that tensor cores can compute: operands of 16 bits or fewer, or tf32."""
    dots = re.findall(r"= tt\.dot(?:_scaled)? (.*)", ttir)
    wide = re.compile(r"tensor<\w+xf(?:32|64)> \*")
    return sum("inputPrecision" in dot or not wide.search(dot) for dot in dots)


def name(one: launch.Launch) -> str:
    """layer_norm_forward_kernel"""
    return one.kernel.fn.__name__


def describe(one: launch.Launch, kernel) -> str:
    """The key of a kernel: its types, divisibility, constants and options.

    `2 *bf16/16` are two pointers, and `i32/16` is a size, that Triton knows to be divisible by 16.
    """
    signature, attributes = kernel.src.signature, kernel.src.attrs
    names = list(signature)
    types = [
        kind + "/16" * (["tt.divisibility", 16] in attributes.get((index,), []))
        for index, kind in enumerate(signature.values())
        if kind != "constexpr"
    ]
    runs = [(kind, len(list(equal))) for kind, equal in itertools.groupby(types)]
    types = ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in runs)
    constants = {names[path[0]]: value for path, value in kernel.src.constants.items()}
    same = {*names, "enable_fp_fusion"}  # fusion is allowed in all kernels
    options = {k: v for k, v in one.options.items() if k not in same and v is not None}
    options |= {key: getattr(kernel.metadata, key) for key in ("num_warps", "num_stages")}
    return f"{name(one)}({types}) {_words(constants)} {_words(options)}"


def _words(values: dict) -> str:
    return " ".join(f"{key}={getattr(value, '__name__', value)}" for key, value in values.items())
