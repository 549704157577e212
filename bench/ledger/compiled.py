"""From a call to the machine code that it would launch, for an architecture that is not there.

A case is called, forward and backward, on meta tensors under `kernels.common.launch.record`: what comes
out is the launcher's own description of each launch. Triton's own runtime then specialises and
compiles it, behind a driver that knows nothing but the architecture. So what is compiled here is
what a card would load: kernel, tile, divisibility and options come from one place.
"""

import contextlib
import itertools
import re
from collections.abc import Iterable
from typing import NamedTuple
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor
from triton import TritonError
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from bench.ledger import load_widths, loops, sass
from bench.ledger.occupancy import WARPS, resident_blocks
from kernels import triton_ops
from kernels.common import launch

AMD_TILES = launch.INTERPRETED  # the family whose tiles an AMD card would be given


class Target(NamedTuple):
    """Where code is compiled for, and the cards that run the same code."""

    name: str  # "90", "gfx942"
    cards: tuple[int, ...]  # whose launches are recorded

    @property
    def gpu(self) -> GPUTarget:
        if self.name.startswith("gfx"):
            return GPUTarget("hip", self.name, 64)
        return GPUTarget("cuda", int(self.name), 32)


def parse_target(name: str) -> Target:
    if name.startswith("gfx"):
        return Target(name, (AMD_TILES,))
    return Target(name, (80, 86, 89) if name == "80" else (int(name),))


class Offline:
    """A Triton driver without a card: the runtime asks it only what to compile for."""

    def __init__(self, gpu: GPUTarget):
        self.gpu = gpu

    def get_current_target(self):
        return self.gpu

    def get_current_device(self):
        return self.gpu  # the runtime keeps its compiled kernels by device

    def get_current_stream(self, device):
        return 0


class Launched(NamedTuple):
    case: str
    card: int
    launch: launch.Launch


def record(case, card: int) -> list[Launched]:
    """Everything that `case` would launch on `card`."""
    with launch.record(card) as launches, _autocast_on_meta():
        case.run(triton_ops.OPS, "meta")
    return [Launched(str(case), card, without_fakes(one)) for one in launches]


def without_fakes(one: launch.Launch) -> launch.Launch:
    """A launch with meta tensors for fake ones, of which Triton would ask where they lie."""
    return one._replace(arguments=tuple(map(_meta, one.arguments)))


def _meta(value):
    if not isinstance(value, FakeTensor):
        return value
    elements = value.untyped_storage().nbytes() // value.element_size()
    storage = torch.empty(elements, dtype=value.dtype, device="meta")
    return storage.as_strided(value.shape, value.stride(), value.storage_offset())


@contextlib.contextmanager
def _autocast_on_meta():
    """PyTorch has no autocast for meta tensors: that of the CPU holds for them."""

    def of_the_cpu(asked):
        return lambda *kind: asked("cpu" if kind == ("meta",) else kind[0]) if kind else asked()

    with contextlib.ExitStack() as stack:
        for name in ("is_autocast_enabled", "get_autocast_dtype"):
            replacement = of_the_cpu(getattr(torch, name))
            stack.enter_context(mock.patch.object(torch, name, replacement))
        yield


def rows(launched: Iterable[Launched], target: Target) -> list[dict]:
    """One row of figures for every different kernel that was launched."""
    driver.set_active(Offline(target.gpu))  # for good: this is why the ledger has its own process
    found: dict[str, dict] = {}
    for case, card, one in launched:
        try:
            kernel = compile_launch(one)
        except (TritonError, RuntimeError, AssertionError) as error:
            # of the compiler's passes, and of its options: warps are a power of two
            key = f"{name(one)} {_words(one.options)}"
            failed = {"error": str(error).strip().partition("\n")[0], "narrow": []}
            row = found.setdefault(key, failed)
        else:
            key = describe(one, kernel)
            if key not in found:
                found[key] = figures(kernel, target)
            row = found[key]
            row["narrow"] = sorted({*row["narrow"], *narrow_loads(one, kernel)})
        row["cards"] = sorted({*row.get("cards", ()), card})
        row["cases"] = sorted({*row.get("cases", ()), case})
    return [{"target": target.name, "key": key, **row} for key, row in found.items()]


def compile_launch(one: launch.Launch):
    """Triton's own launch, stopped before the launch: specialised, compiled, not run."""
    return one.kernel.run(*one.arguments, grid=one.grid, warmup=True, **one.options)


def figures(kernel, target: Target) -> dict:
    """What the ledger says of one kernel."""
    metadata = kernel.metadata
    row = {"shared": metadata.shared, "narrow": []}
    if "amdgcn" in kernel.asm:
        return row | _amd_figures(kernel.asm["amdgcn"])
    code = sass.disassemble(kernel.asm["cubin"])
    row["registers"] = sass.registers(kernel.asm["cubin"])
    row["blocks"] = resident_blocks(
        int(target.name), metadata.num_warps, row["registers"], metadata.shared, metadata.tmem_size
    )
    row["occupancy"] = round(row["blocks"] * metadata.num_warps / WARPS[int(target.name)], 2)
    row |= sass.counts(code)
    if overwritten := sass.overwritten(code):
        row["overwritten"] = overwritten
    row["products"] = products(kernel.asm["ttir"])
    row["loop"] = loops.hottest(code, kernel.asm["ttgir"], int(target.name), metadata.num_warps)
    return row


def _amd_figures(assembly: str) -> dict:
    def figure(field):
        return int(re.search(rf"\.{field}:\s*(\d+)", assembly).group(1))

    return {"registers": figure("vgpr_count"), "spills": figure("vgpr_spill_count")}


def products(ttir: str) -> int:
    """Matrix products that tensor cores take: of 16-bit numbers or narrower, or asked as tf32."""
    dots = re.findall(r"= tt\.dot(?:_scaled)? (.*)", ttir)
    wide = re.compile(r"tensor<\w+xf(?:32|64)> \*")
    return sum("inputPrecision" in dot or not wide.search(dot) for dot in dots)


def name(one: launch.Launch) -> str:
    """layer_norm_forward_kernel"""
    return one.kernel.fn.__name__


def narrow_loads(one: launch.Launch, kernel) -> list[str]:
    if "ptx" not in kernel.asm:
        return []
    named = zip(one.kernel.arg_names, one.arguments, strict=False)  # constexprs come by keyword
    tensors = {key: value for key, value in named if isinstance(value, torch.Tensor)}
    threads = kernel.metadata.num_warps * kernel.metadata.warp_size
    return load_widths.narrow(kernel.asm["ttir"], kernel.asm["ptx"], tensors, threads)


def describe(one: launch.Launch, kernel) -> str:
    """What makes this kernel different from others: types, divisibility, constants, options.

    `2 *bf16/16` are two pointers, and `i32/16` is a size, that Triton knows to be divisible by 16.
    """
    signature, attributes = kernel.src.signature, kernel.src.attrs
    names = list(signature)
    types = [
        kind + ("/16" if ["tt.divisibility", 16] in attributes.get((index,), []) else "")
        for index, kind in enumerate(signature.values())
        if kind != "constexpr"
    ]
    runs = [(kind, len(list(equal))) for kind, equal in itertools.groupby(types)]
    types = ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in runs)
    constants = {names[path[0]]: value for path, value in kernel.src.constants.items()}
    options = {key: value for key, value in one.options.items() if key not in names}
    options = {key: value for key, value in options.items() if value is not None}
    options |= {key: getattr(kernel.metadata, key) for key in ("num_warps", "num_stages")}
    del options["enable_fp_fusion"]  # the same for all
    return f"{name(one)}({types}) {_words(constants)} {_words(options)}"


def _words(values: dict) -> str:
    return " ".join(f"{key}={getattr(value, '__name__', value)}" for key, value in values.items())
