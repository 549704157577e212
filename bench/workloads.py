"""What is timed, and the least work that any implementation of it has to do.

Work counts each input read once and each result written once, in bytes, and floating-point
operations; causal attention counts half of its square, whatever a kernel does with the rest.
The order of `CARD` is the order of measurement: time may run out, so what matters most comes first.

Letters: B batch, T time, C channels, H heads, V vocabulary.
"""

import contextlib
import math
from typing import Any, NamedTuple

import torch

from bench.cases import GPT2, GPT2_XL, LECTURE, PRECISIONS, Case, Sizes

PASSES = ("forward", "backward", "both")
GRADIENT_IN_FORWARD = ("cross_entropy", "linear_cross_entropy")  # only both passes compare
STEP = "step"  # the one pass of an optimizer


class Work(NamedTuple):
    bytes: float
    flops: float = 0.0


class ModuleCase(NamedTuple):
    """A module of `gpt/`, with its parameters; in all else like a `Case`."""

    operation: str  # a class of gpt.models.reference that gpt.models.packed has too
    sizes: Sizes
    precision: str = "bf16"
    config: dict[str, Any] = {}  # noqa: RUF012 (never written)

    @property
    def options(self) -> dict[str, Any]:
        return {}

    def keywords(self, device) -> dict[str, Any]:
        return {}

    def around(self, device):
        return contextlib.nullcontext()

    def inputs(self, device) -> tuple:
        dtype = PRECISIONS[self.precision].narrow
        x = torch.randn(
            self.sizes.B, self.sizes.T, self.sizes.C, dtype=dtype, device=device, requires_grad=True
        )
        return (x,)


class OptimizerCase(NamedTuple):
    """A step of an optimizer over the parameters of GPT-2."""

    operation: str
    sizes: Sizes
    n_layer: int
    precision: str = "fp32"

    def inputs(self, device) -> tuple:
        """Parameters with gradients."""
        dtype = PRECISIONS[self.precision].wide
        parameters = []
        for shape in self.shapes():
            parameter = torch.nn.Parameter(torch.randn(shape, dtype=dtype, device=device))
            parameter.grad = torch.randn_like(parameter)
            parameters.append(parameter)
        return tuple(parameters)

    def shapes(self) -> list[tuple[int, ...]]:
        _, _, T, C, _, V = self.sizes
        norm = [(C,), (C,)]
        attention = [(3 * C, C), (3 * C,), (C, C), (C,)]
        feed_forward = [(4 * C, C), (4 * C,), (C, 4 * C), (C,)]
        block = [*norm, *attention, *norm, *feed_forward]
        return [(V, C), (T, C), *self.n_layer * block, *norm]

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.shapes()))


GPT2_32K = GPT2._replace(name="gpt2-32k", B=32)
GPT2_64K = GPT2._replace(name="gpt2-64k", B=64)
GPT2_4K = GPT2._replace(name="gpt2-4k", B=4, T=4096)
GPT2_8K = GPT2._replace(name="gpt2-8k", B=2, T=8192)
GPT2_16K = GPT2._replace(name="gpt2-16k", B=1, T=16384)
GPT2_XL_16K = GPT2_XL._replace(name="gpt2-xl-16k", B=16)
WIDE_HEADS = Sizes("wide-heads", B=4, T=2048, C=2048, H=16, V=50304)
NANO = Sizes("nano", B=12, T=64, C=128, H=4, V=65)  # nanoGPT's recipe for a CPU

LECTURE_DROPOUT = {"dropout_p": 0.2}
GPT2_DROPOUT = {"dropout_p": 0.1}

# what steps of `lecture` and `gpt2` call, the largest share of a step first
STEPS = (
    Case("attention_qkv", LECTURE, "training", LECTURE_DROPOUT),
    Case("attention_qkv", GPT2_32K, "training"),
    Case("feed_forward", LECTURE, "training", {"activation": "relu"}),
    Case("feed_forward", GPT2_32K, "training", {"activation": "gelu"}),
    Case("linear_cross_entropy", LECTURE, "training"),
    Case("linear_cross_entropy", GPT2_32K, "training"),
    Case("add_layer_norm", LECTURE, "training", {"x_bias": True} | LECTURE_DROPOUT),
    Case("add_layer_norm", GPT2_32K, "training"),
    Case("embedding", LECTURE, "training"),
    Case("embedding", GPT2_32K, "training"),
    Case("layer_norm", LECTURE, "training"),
    Case("layer_norm", GPT2_32K, "training"),
)

CARD = (
    *STEPS,
    Case("layer_norm", GPT2_64K),
    Case("add_layer_norm", GPT2_64K),
    Case("attention", GPT2),
    Case("attention", GPT2_4K),
    Case("attention", GPT2_16K),
    Case("attention", LECTURE, options=LECTURE_DROPOUT),
    Case("cross_entropy", GPT2),
    Case("linear_cross_entropy", GPT2),
    Case("feed_forward", GPT2_64K, options={"activation": "gelu"}),
    Case("embedding", GPT2_64K),
    OptimizerCase("adamw", GPT2, n_layer=12),  # 124 M parameters
    ModuleCase("Block", LECTURE, config={"dropout": 0.2}),
    ModuleCase("Block", GPT2, config={"activation": "gelu", "qkv_bias": True}),
    Case("attention", GPT2, options=GPT2_DROPOUT),
    Case("attention", WIDE_HEADS),
    Case("attention_qkv", LECTURE, options=LECTURE_DROPOUT),
    Case("attention_qkv", GPT2),
    Case("rms_norm", GPT2),
    Case("layer_norm", LECTURE),
    Case("add_layer_norm", LECTURE, options=LECTURE_DROPOUT),
    Case("feed_forward", LECTURE, options={"activation": "relu"}),
    Case("linear_cross_entropy", GPT2_64K),
    Case("attention", GPT2_8K),
    Case("cross_entropy", LECTURE),
    Case("linear_cross_entropy", LECTURE),
    Case("embedding", LECTURE),
    Case("layer_norm", GPT2_XL_16K),
    Case("attention", LECTURE),
)

CPU = (
    *(
        Case(operation, NANO, "fp32")
        for operation in (
            "layer_norm",
            "add_layer_norm",
            "rms_norm",
            "attention",
            "attention_qkv",
            "feed_forward",
            "cross_entropy",
            "linear_cross_entropy",
            "embedding",
        )
    ),
    ModuleCase("Block", NANO, "fp32"),
    OptimizerCase("adamw", NANO, n_layer=4),
)


def cases(device: torch.device) -> tuple:
    return CARD if device.type == "cuda" else CPU


def passes(case) -> tuple[str, ...]:
    """The passes in which implementations of the case can be compared."""
    if isinstance(case, OptimizerCase):
        return (STEP,)
    return PASSES[-1:] if case.operation in GRADIENT_IN_FORWARD else PASSES


def shape(case) -> str:
    """The shape of a case as tables print it, with its options."""
    if isinstance(case, OptimizerCase):
        return f"{case.parameters / 1e6:.1f} M parameters"
    _, B, T, C, H, V = case.sizes
    D, rows = C // H, B * T
    text = {
        "layer_norm": f"{rows:,} x {C:,}",
        "add_layer_norm": f"{rows:,} x {C:,}",
        "rms_norm": f"{rows:,} x {H} x {D}",
        "attention": f"({B}, {H}, {T:,}, {D})",
        "attention_qkv": f"({B}, {T:,}, 3 x {H} x {D})",
        "feed_forward": f"{rows:,} x {C:,} x {4 * C:,}",
        "cross_entropy": f"{rows:,} x {V:,}",
        "linear_cross_entropy": f"{rows:,} x {C:,} x {V:,}",
        "embedding": f"({B}, {T:,}) of {V:,} x {C:,}",
    }.get(case.operation, f"({B}, {T:,}, {C:,})")
    words = case.config if isinstance(case, ModuleCase) else case.options
    if "activation" in words:
        text += f" {words['activation']}"
    dropout = words.get("dropout") or words.get("dropout_p")
    return text + (f", dropout {dropout}" if dropout else "")


def work(case) -> dict[str, Work]:
    """The least work of each pass."""
    if isinstance(case, OptimizerCase):  # parameter and two moments read and written, gradient read
        return {STEP: Work(7 * case.parameters * PRECISIONS[case.precision].wide.itemsize)}
    forward, backward, both = _elements(case)
    forward_flops, backward_flops = _flops(case)
    wide, narrow, _ = PRECISIONS[case.precision]
    size = (wide if case.operation == "embedding" else narrow).itemsize
    return {
        "forward": Work(size * forward, forward_flops),
        "backward": Work(size * backward, backward_flops),
        "both": Work(size * (both or forward + backward), forward_flops + backward_flops),
    }


def _elements(case) -> tuple[float, float, float]:
    """Elements read and written in forward, backward and both; 0 for both means their sum."""
    _, B, T, C, _, V = case.sizes
    n, weights = B * T * C, 8 * C * C  # the feed-forward's two matrices
    rows, table = B * T, V * C
    same = 4 if case.options.get("dropout_p") else 3  # dropout tells dx from dresidual
    return {
        "layer_norm": (2 * n, 3 * n, 0),  # x; y | x, dy; dx
        "rms_norm": (2 * n, 3 * n, 0),
        "add_layer_norm": (4 * n, (1 + same) * n, 0),  # residual, x; sum, y | sum, dsum, dy; dx
        "attention": (4 * n, 8 * n, 0),  # q, k, v; out | q, k, v, out, dout; dq, dk, dv
        "attention_qkv": (4 * n, 8 * n, 0),
        "feed_forward": (2 * n + weights, 3 * n + 2 * weights, 0),
        # a pass that has read the logits can write their gradient at once
        "cross_entropy": (rows * V, 2 * rows * V, 2 * rows * V),
        "linear_cross_entropy": (n + table, 2 * n + 2 * table, 0),
        "embedding": (2 * n, n + table + T * C, 0),
        "Block": (2 * n + 12 * C * C, 3 * n + 24 * C * C, 0),
    }[case.operation]


def _flops(case) -> tuple[float, float]:
    """Floating-point operations of forward and backward; 0 where the bytes decide."""
    _, B, T, C, _, V = case.sizes
    rows = B * T
    attention = 4 * rows * T * C / 2  # 4 B H T^2 D, the causal half
    feed_forward, projections, head = 16 * rows * C * C, 8 * rows * C * C, 2 * rows * C * V
    return {
        "attention": (attention, 2.5 * attention),
        "attention_qkv": (attention, 2.5 * attention),
        "feed_forward": (feed_forward, 2 * feed_forward),
        "linear_cross_entropy": (head, 2 * head),
        "Block": (
            attention + projections + feed_forward,
            2.5 * attention + 2 * (projections + feed_forward),
        ),
    }.get(case.operation, (0.0, 0.0))
