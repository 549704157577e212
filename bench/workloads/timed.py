"""The workloads that the benchmarks time, and the minimal work of each.

Work counts each input read once and each result written once, in bytes, and floating-point
operations; causal attention counts half of its square, whatever a kernel computes of the rest.
`GPU` is in the order of measurement, most important first, because time may run out.
"""

from typing import NamedTuple

from bench.workloads import operations
from bench.workloads.operations import GPT2, GPT2_4K, LECTURE, PRECISIONS, Case, Update

PASSES = ("forward", "backward", "both")
STEP = "step"  # the only pass of an optimizer


class Work(NamedTuple):
    bytes: float
    flops: float = 0.0


GPT2_32K = GPT2._replace(name="gpt2-32k", B=32)
GPT2_64K = GPT2._replace(name="gpt2-64k", B=64)
GPT2_16K = GPT2._replace(name="gpt2-16k", B=1, T=16384)
GPT2_XL_16K = operations.GPT2_XL._replace(name="gpt2-xl-16k", B=16)
NANO = operations.Sizes("nano", B=12, T=64, C=128, H=4, V=65)  # nanoGPT's CPU recipe

LECTURE_DROPOUT = {"dropout_p": 0.2}
GPT2_DROPOUT = {"dropout_p": 0.1}

# the operations of a training step of `lecture` and `gpt2`, the most expensive first
TRAINING = (
    Case("attention_qkv", LECTURE, "training", LECTURE_DROPOUT),
    Case("attention_qkv", GPT2_32K, "training"),
    Case("feed_forward", LECTURE, "training", {"activation": "relu"}),
    Case("feed_forward", LECTURE, "training", {"activation": "gelu"}),
    Case("feed_forward", LECTURE, "training", {"activation": "relu_squared"}),
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

GPU = (
    *TRAINING,
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
    Update("adamw", GPT2, n_layer=12),  # 124 M parameters
    Case("attention", GPT2, options=GPT2_DROPOUT),
    Case("attention", operations.WIDE_HEADS),
    Case("rms_norm", GPT2),
    Case("cross_entropy", LECTURE),
    Case("layer_norm", GPT2_XL_16K),
    Case("attention", LECTURE),
)

CPU = [Case(name, NANO, "fp32") for name in dict.fromkeys(case.operation for case in GPU)]
CPU = [Update("adamw", NANO, n_layer=4) if one.operation == "adamw" else one for one in CPU]


def passes(case) -> tuple[str, ...]:
    """The passes for which implementations of the case are comparable."""
    if isinstance(case, Update):
        return (STEP,)
    # some cross entropies compute the gradient in the forward pass
    return PASSES[-1:] if case.operation.endswith("cross_entropy") else PASSES


def shape(case) -> str:
    """The shape of a case and its options, as tables print them."""
    if isinstance(case, Update):
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
    }[case.operation]
    if activation := case.options.get("activation"):
        text += f" {activation}"
    dropout = case.options.get("dropout_p")
    return text + (f", dropout {dropout}" if dropout else "")


def work(case) -> dict[str, Work]:
    """The minimal work of each pass."""
    if isinstance(case, Update):  # parameter and two moments read and written, gradient read
        return {STEP: Work(7 * case.parameters * PRECISIONS[case.precision].wide.itemsize)}
    _, B, T, C, _, V = case.sizes
    rows, n, table = B * T, B * T * C, V * C
    weights = 8 * C * C  # of the feed-forward
    wide, narrow, _ = PRECISIONS[case.precision]
    ratio = wide.itemsize // narrow.itemsize  # of the tables of an embedding
    gradients = 4 if case.options.get("dropout_p") else 3  # with dropout dx and dresidual differ
    attention = 4 * rows * T * C / 2  # 4 B H T^2 D, the causal half
    feed_forward, head = 16 * n * C, 2 * n * V
    # elements read and written by forward and backward, and floating-point operations of both
    forward, backward, forward_flops, backward_flops = {
        "layer_norm": (2 * n, 3 * n, 0, 0),  # x; y | x, dy; dx
        "rms_norm": (2 * n, 3 * n, 0, 0),
        # residual, x; sum, y | sum, dsum, dy; dx
        "add_layer_norm": (4 * n, (1 + gradients) * n, 0, 0),
        # q, k, v; out | q, k, v, out, dout; dq, dk, dv
        "attention": (4 * n, 8 * n, attention, 2.5 * attention),
        "attention_qkv": (4 * n, 8 * n, attention, 2.5 * attention),
        "feed_forward": (2 * n + weights, 3 * n + 2 * weights, feed_forward, 2 * feed_forward),
        "cross_entropy": (rows * V, 2 * rows * V, 0, 0),
        "linear_cross_entropy": (n + table, 2 * n + 2 * table, head, 2 * head),
        "embedding": (n + ratio * min(n, table), n + ratio * (table + T * C), 0, 0),
    }[case.operation]
    both = forward + backward
    if case.operation == "cross_entropy":  # having read the logits, write their gradient at once
        both = backward
    size = narrow.itemsize
    return {
        "forward": Work(size * forward, forward_flops),
        "backward": Work(size * backward, backward_flops),
        "both": Work(size * both, forward_flops + backward_flops),
    }
