"""The calls that the ledger compiles and the benchmarks time. One line of `CASES` is one case.

Letters: B batch, T time, C channels, H heads, D = C / H, F = 4 C, V vocabulary. `inputs` makes
random operands on any device; on "meta" there is nothing but shapes, and that is enough to
launch for an architecture that is not there.
"""

import contextlib
from typing import Any, NamedTuple

import torch

from kernels.common import launch


class Precision(NamedTuple):
    """The dtypes of a training step."""

    wide: torch.dtype  # the parameters
    narrow: torch.dtype  # operands and results of matrix products
    stream: torch.dtype  # the residual stream


PRECISIONS = {
    "bf16": Precision(torch.bfloat16, torch.bfloat16, torch.bfloat16),
    "fp16": Precision(torch.float16, torch.float16, torch.float16),
    "fp32": Precision(torch.float32, torch.float32, torch.float32),
    "autocast": Precision(torch.float32, torch.bfloat16, torch.float32),  # PyTorch's
    "training": Precision(torch.float32, torch.bfloat16, torch.bfloat16),  # gpt/models/packed.py's
}


class Sizes(NamedTuple):
    name: str
    B: int
    T: int
    C: int
    H: int
    V: int


LECTURE = Sizes("lecture", B=64, T=256, C=384, H=6, V=65)
GPT2 = Sizes("gpt2", B=16, T=1024, C=768, H=12, V=50304)
GPT2_XL = Sizes("gpt2-xl", B=4, T=1024, C=1600, H=25, V=50304)
WIDE_HEADS = Sizes("wide-heads", B=4, T=2048, C=2048, H=16, V=50304)


class Case(NamedTuple):
    operation: str  # a name of kernels.Ops
    sizes: Sizes
    precision: str = "bf16"  # a name of PRECISIONS
    options: dict[str, Any] = {}  # noqa: RUF012 (never written)
    route: launch.Route | None = None  # of the feed-forward, else `launch.ROUTES` decides

    def __str__(self):
        options = "".join(f" {name}={value}" for name, value in self.options.items())
        route = f" by {' '.join(self.route)}" if self.route else ""
        return f"{self.operation} {self.sizes.name} {self.precision}{options}{route}"

    def inputs(self, device) -> tuple:
        """Operands of the operation, drawn on `device`; those with a gradient require it."""
        return _INPUTS[self.operation](self.sizes, PRECISIONS[self.precision], device)

    def keywords(self, device) -> dict[str, Any]:
        """The options as the operation takes them, tensors among them."""
        options = dict(self.options)
        if options.pop("x_bias", False):
            options["x_bias"] = torch.zeros(self.sizes.C, device=device).requires_grad_()
        if options.pop("angles", False):
            T, D = self.sizes.T, self.sizes.C // self.sizes.H
            options["cos"], options["sin"] = torch.ones(2, T, D, device=device)
        return options

    def around(self, device):
        """The context of its forward pass: where parameters are wider, autocast."""
        wide, narrow, stream = PRECISIONS[self.precision]
        if wide == stream:
            return contextlib.nullcontext()
        kind = torch.device(device).type
        return torch.autocast("cpu" if kind == "meta" else kind, narrow)

    def call(self, ops, inputs):
        with launch.routed(self.route), self.around(inputs[0].device):
            return getattr(ops, self.operation)(*inputs, **self.keywords(inputs[0].device))

    def run(self, ops, device) -> None:
        """Forward and backward."""
        outputs = self.call(ops, self.inputs(device))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])


class Update(NamedTuple):
    """A step of an optimizer, with clipped gradients; nothing to differentiate.

    By "autocast" as in a captured step: with gradients of copies in 16 bits.
    """

    operation: str  # a name of kernels.Ops
    sizes: Sizes
    precision: str = "fp32"  # a name of PRECISIONS

    def __str__(self):
        return f"{self.operation} {self.sizes.name} {self.precision}"

    def run(self, ops, device) -> None:
        wide, narrow, _ = PRECISIONS[self.precision]
        C = self.sizes.C
        parameters = [torch.nn.Parameter(_leaves(device)(s, wide)) for s in ((C, 4 * C), (C,))]
        copies = [one.detach().to(narrow).requires_grad_() for one in parameters]
        followed = {} if wide == narrow else dict(zip(parameters, copies, strict=True))
        for parameter in parameters:
            leaf = followed.get(parameter, parameter)
            leaf.grad = torch.zeros_like(leaf)
        optimizer = getattr(ops, self.operation)(parameters)
        if followed:
            optimizer.follow(followed)
        optimizer.clip_grad_norm(1.0)
        optimizer.step()


class Token(NamedTuple):
    """One token of each of B rows; nothing to differentiate."""

    operation: str  # a name of kernels.Ops
    sizes: Sizes
    precision: str = "bf16"  # a name of PRECISIONS
    options: dict[str, Any] = {}  # noqa: RUF012 (never written)

    def __str__(self):
        options = "".join(f" {name}={value}" for name, value in self.options.items())
        return f"{self.operation} {self.sizes.name} {self.precision}{options}"

    @torch.no_grad()
    def run(self, ops, device) -> torch.Tensor:
        inputs, more = _TOKEN_INPUTS[self.operation](
            self.sizes, PRECISIONS[self.precision].narrow, device, **self.options
        )
        return getattr(ops, self.operation)(*inputs, **more)


def _layer_norm(sizes, precision, device):
    leaf = _leaves(device)
    _, B, T, C, *_ = sizes
    return leaf((B, T, C), precision.stream), leaf((C,), precision.wide), leaf((C,), precision.wide)


def _rms_norm(sizes, precision, device):
    """The norm of queries: heads of a packed projection (B, T, 3C), without a weight."""
    _, B, T, C, H, _ = sizes
    qkv = _leaves(device)((B, T, 3 * H, C // H), precision.narrow)
    return qkv[:, :, :H], None


def _add_layer_norm(sizes, precision, device):
    leaf = _leaves(device)
    _, B, T, C, *_ = sizes
    branch = leaf((B, T, C), precision.narrow)
    return leaf((B, T, C), precision.stream), branch, *_layer_norm(sizes, precision, device)[1:]


def _attention(sizes, precision, device):
    _, B, T, C, H, _ = sizes
    leaf = _leaves(device)
    return tuple(leaf((B, H, T, C // H), precision.narrow) for _ in range(3))


def _attention_qkv(sizes, precision, device):
    _, B, T, C, H, _ = sizes
    return _leaves(device)((B, T, 3 * C), precision.narrow), H


def _feed_forward(sizes, precision, device):
    """Weights of a size that keeps activations at one."""
    _, B, T, C, *_ = sizes
    leaf, dtype = _leaves(device), precision.narrow
    w1, b1 = leaf((4 * C, C), dtype, C**-0.5), leaf((4 * C,), dtype)
    w2, b2 = leaf((C, 4 * C), dtype, (4 * C) ** -0.5), leaf((C,), dtype)
    return leaf((B, T, C), dtype), w1, b1, w2, b2


def _cross_entropy(sizes, precision, device):
    _, B, T, *_, V = sizes
    logits = _leaves(device)((B, T, V), precision.narrow)
    return logits, torch.randint(V, (B, T), device=device)


def _linear_cross_entropy(sizes, precision, device):
    """GPT-2's head, which has no bias; in training the lecture's, which has one."""
    name, B, T, C, _, V = sizes
    leaf = _leaves(device)
    weight, bias = leaf((V, C), precision.wide, C**-0.5), None
    if precision is PRECISIONS["training"] and name == LECTURE.name:
        bias = leaf((V,), precision.wide)
    return leaf((B, T, C), precision.narrow), weight, bias, torch.randint(V, (B, T), device=device)


def _embedding(sizes, precision, device):
    _, B, T, C, _, V = sizes
    leaf = _leaves(device)
    tokens = torch.randint(V, (B, T), device=device)
    return tokens, leaf((V, C), precision.wide), leaf((T, C), precision.wide)


def _leaves(device):
    def leaf(shape, dtype, scale=1.0):
        return (scale * torch.randn(shape, dtype=dtype, device=device)).requires_grad_()

    return leaf


_INPUTS = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "add_layer_norm": _add_layer_norm,
    "attention": _attention,
    "attention_qkv": _attention_qkv,
    "feed_forward": _feed_forward,
    "cross_entropy": _cross_entropy,
    "linear_cross_entropy": _linear_cross_entropy,
    "embedding": _embedding,
}


def _decode_linear(sizes, dtype, device, int8=False, **options):
    """The way up, which takes everything: norm, bias and activation."""
    _, B, _, C, *_ = sizes
    leaf = _leaves(device)
    weight = leaf((4 * C, C), dtype, C**-0.5)
    if int8:
        weight = weight.to(torch.int8)
        options["scale"] = leaf((4 * C,), torch.float32)
    if "norm" in options:
        options["norm_weight"] = leaf((C,), dtype)
    return (leaf((B, C), dtype), weight, leaf((4 * C,), dtype)), options


def _decode_attention(sizes, dtype, device, **options):
    _, B, T, C, H, _ = sizes
    leaf = _leaves(device)
    position = torch.full((B,), T - 1, device=device)
    return (leaf((B, 3 * C), dtype), leaf((2, B, H, T, C // H), dtype), position), options


def _sample_token(sizes, dtype, device, **options):
    return (_leaves(device)((sizes.B, sizes.V), dtype),), options


_TOKEN_INPUTS = {
    "decode_linear": _decode_linear,
    "decode_attention": _decode_attention,
    "sample_token": _sample_token,
}

_DROPOUT = {"dropout_p": 0.2}

CASES = (
    Case("layer_norm", LECTURE),
    Case("layer_norm", LECTURE, "fp32"),
    Case("layer_norm", GPT2),
    Case("layer_norm", GPT2, "fp16"),
    Case("layer_norm", GPT2, "autocast"),
    Case("layer_norm", GPT2_XL),
    Case("add_layer_norm", LECTURE, "autocast", {"x_bias": True} | _DROPOUT),
    Case("add_layer_norm", GPT2),
    Case("add_layer_norm", GPT2, "autocast"),
    Case("add_layer_norm", GPT2_XL, "bf16", _DROPOUT),
    Case("rms_norm", LECTURE),
    Case("rms_norm", GPT2),
    Case("attention", GPT2),
    Case("attention", GPT2, "fp16", {"causal": False}),
    Case("attention", GPT2, "fp32"),
    Case("attention", WIDE_HEADS),
    Case("attention", GPT2, "bf16", {"window": 256} | _DROPOUT),
    Case("attention_qkv", LECTURE, "bf16", _DROPOUT),
    Case("attention_qkv", GPT2),
    Case("attention_qkv", LECTURE, "bf16", {"qk_norm": True, "angles": True} | _DROPOUT),
    Case("feed_forward", LECTURE, "bf16", {"activation": "relu"} | _DROPOUT),
    Case("feed_forward", LECTURE, "bf16", {"activation": "relu"} | _DROPOUT, launch.GEMM),
    Case("feed_forward", LECTURE, "fp32", {"activation": "relu_squared"}),
    Case("feed_forward", LECTURE, "bf16", {"activation": "relu_squared"}, launch.GEMM),
    Case("feed_forward", GPT2),
    Case("feed_forward", GPT2, "bf16", route=launch.GEMM),
    Case("feed_forward", GPT2, "fp32", route=launch.GEMM),
    Case("feed_forward", GPT2, "bf16", {"activation": "gelu_tanh"}),
    Case("feed_forward", GPT2, "fp16", {"activation": "gelu_tanh"}, launch.GEMM),
    Case("cross_entropy", LECTURE),
    Case("cross_entropy", GPT2),
    Case("cross_entropy", GPT2, "fp32"),
    Case("linear_cross_entropy", GPT2),
    Case("embedding", GPT2, "autocast"),
)

UPDATES = (
    Update("adamw", GPT2),
    Update("adamw", GPT2, "bf16"),
    Update("adamw", GPT2, "autocast"),
)

ONE = GPT2._replace(name="gpt2 one token", B=1)

TOKENS = (
    Token("decode_linear", ONE, "bf16", {"norm": "layer_norm", "activation": "gelu_tanh"}),
    Token("decode_linear", ONE, "bf16", {"int8": True}),
    Token("decode_linear", ONE, "fp32"),
    Token("decode_attention", ONE),
    Token("decode_attention", ONE, "fp32", {"qk_norm": True}),
    Token("decode_attention", ONE, "bf16", {"window": 256}),
    Token("sample_token", ONE, "bf16", {"top_k": 40}),
    Token("sample_token", ONE, "fp32", {"temperature": 0.0}),
)
