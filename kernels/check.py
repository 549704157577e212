"""A check of every operation of a table on this device against PyTorch in fp64, within seconds.

`python -m kernels.doctor --check` prints the results. The tests have much tighter bounds; this
check shows whether the kernels compile, run and are correct with this compiler, driver and GPU.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import triton
from triton.errors import TritonError

from . import Ops, serving, torch_ops

Sizes = tuple[int, int, int, int, int]  # B, T, C, H, V

# whole tiles and wide loads; neither
SIZES: tuple[Sizes, ...] = ((2, 256, 384, 6, 1024), (2, 77, 60, 3, 101))
# raised by PyTorch and Triton when a kernel does not compile, load or run
RAISED = (RuntimeError, ValueError, TypeError, AssertionError, TritonError)
WITHOUT_GRADIENTS = ("decode_linear", "decode_attention", "sample_token")
# relative to the norm of a result: several roundings of each dtype
BOUNDS = {torch.bfloat16: 0.01, torch.float16: 0.005, torch.float32: 1e-5}


def failures(ops: Ops, device: torch.device) -> dict[str, str]:
    """Operation -> what is wrong with it, for the operations that fail."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TF32 is not an error of a kernel
    try:
        reasons = {name: failure(name, ops, device) for name in Ops._fields}
    finally:
        torch.set_float32_matmul_precision(precision)
    return {name: reason for name, reason in reasons.items() if reason}


def failure(
    name: str, ops: Ops, device: torch.device, dtypes: Iterable[torch.dtype] = tuple(BOUNDS)
) -> str | None:
    """How an operation differs from PyTorch's, or why it does not run; None if it is correct."""
    for dtype in dtypes:
        for sizes in SIZES:
            try:
                error = largest_error(name, ops, device, dtype, sizes)
            except RAISED as raised:
                return f"{type(raised).__name__}: {str(raised).strip().partition(chr(10))[0]}"
            if not error <= BOUNDS[dtype]:  # also if it is NaN
                word = str(dtype).removeprefix("torch.")
                return f"differs from PyTorch by {100 * error:.2g}% in {word}"
    return None


def largest_error(
    name: str, ops: Ops, device: torch.device, dtype: torch.dtype, sizes: Sizes
) -> float:
    """The largest error of results and gradients, each relative to its norm."""
    ours = list(results(name, ops, device, dtype, sizes, dtype))
    exact = list(results(name, torch_ops.OPS, device, dtype, sizes, torch.float64))
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # raises an illegal memory access of a kernel
    errors = [
        (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-9)
        for a, b in zip(ours, exact, strict=True)
    ]
    return torch.stack(errors).max().item()


def results(
    name: str, ops: Ops, device: torch.device, dtype: torch.dtype, sizes: Sizes, wide: torch.dtype
) -> Iterator[torch.Tensor]:
    """Results and gradients of an operation on numbers of `dtype`, computed in `wide`."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, scale=1.0):
        x = (scale * torch.randn(shape, generator=generator)).to(dtype)
        return x.to(device, wide).requires_grad_()

    def integers(high, *shape):
        return torch.randint(high, shape, generator=generator).to(device)

    if name == "adamw":
        yield from _updated(ops, normal, sizes)
        return
    given = operands(name, normal, integers, sizes)
    options = {"temperature": 0.0} if name == "sample_token" else {}
    with torch.set_grad_enabled(name not in WITHOUT_GRADIENTS):
        outputs = getattr(ops, name)(*given, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    yield from (one.detach() for one in outputs)
    if outputs[0].requires_grad:
        leaves = [x for x in given if isinstance(x, torch.Tensor) and x.requires_grad]
        gradients = [normal(*one.shape).detach().to(one.dtype) for one in outputs]
        yield from torch.autograd.grad(outputs, leaves, gradients)


def operands(name: str, normal: Callable, integers: Callable, sizes: Sizes) -> tuple:
    """The operands of an operation, made by `normal(*shape)` and `integers(high, *shape)`."""
    B, T, C, H, V = sizes
    D, F = C // H, 4 * C
    match name:
        case "embedding":
            return integers(V, B, T), normal(V, C), normal(T, C)
        case "layer_norm":
            return normal(B, T, C), normal(C), normal(C)
        case "rms_norm":
            return normal(B, T, C), normal(C)
        case "add_layer_norm":
            return normal(B, T, C), normal(B, T, C), normal(C), normal(C)
        case "attention":
            return tuple(normal(B, H, T, D) for _ in range(3))
        case "attention_qkv":
            return normal(B, T, 3 * C), H
        case "feed_forward":
            up, down = normal(F, C, scale=C**-0.5), normal(C, F, scale=F**-0.5)
            return normal(B, T, C), up, normal(F), down, normal(C)
        case "cross_entropy":
            return normal(B, T, V), integers(V, B, T)
        case "linear_cross_entropy":
            weight = normal(V, C, scale=C**-0.5)
            return normal(B, T, C), weight, normal(V), integers(V, B, T)
        case "decode_linear":
            return normal(B, C), normal(F, C, scale=C**-0.5), normal(F)
        case "decode_attention":
            return normal(B, 3 * C), normal(2, B, H, T, D), integers(T, B)
        case "sample_token":
            return (normal(B, V),)
    raise ValueError(f"{name} is not an operation of kernels.Ops")


def _updated(ops: Ops, normal: Callable, sizes: Sizes) -> Iterator[torch.Tensor]:
    """Parameters after two steps of the optimizer."""
    _, _, C, *_ = sizes
    parameters = [torch.nn.Parameter(normal(*shape).detach()) for shape in ((C, C), (C,))]
    optimizer = ops.adamw(parameters, lr=0.1)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = normal(*parameter.shape).detach()
        optimizer.step()
    yield from (parameter.detach() for parameter in parameters)


def facts(ops: Ops, device: torch.device) -> dict:
    """What the results of a check depend on: the GPU, its software, and the source files."""
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        sources.update(path.read_bytes())
    driver = Path("/proc/driver/nvidia/version")
    return {
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "driver": driver.read_text() if driver.exists() else None,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "kernels": sources.hexdigest(),
        "serving": serving(ops),
    }
