"""The operations that the ledger compiles and the benchmarks time, at their sizes and dtypes.

Letters: B batch, T time, C channels, H heads, D = C / H, F = 4 C, V vocabulary. `inputs` draws
random operands on any device.
"""

import functools
import math
from typing import Any, NamedTuple

import torch

import kernels
from kernels.common import launch


class Precision(NamedTuple):
    """The dtypes of a training step."""

    wide: torch.dtype  # parameters
    narrow: torch.dtype  # operands and results of matrix products
    stream: torch.dtype  # the residual stream


PRECISIONS = {
    "bf16": Precision(torch.bfloat16, torch.bfloat16, torch.bfloat16),
    "fp16": Precision(torch.float16, torch.float16, torch.float16),
    "fp32": Precision(torch.float32, torch.float32, torch.float32),
    "autocast": Precision(torch.float32, torch.bfloat16, torch.float32),  # PyTorch's
    "training": Precision(torch.float32, torch.bfloat16, torch.bfloat16),  # gpt/models/packed.py
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
GPT2_4K = GPT2._replace(name="gpt2-4k", B=4, T=4096)
GPT2_XL = Sizes("gpt2-xl", B=4, T=1024, C=1600, H=25, V=50304)
WIDE_HEADS = Sizes("wide-heads", B=4, T=2048, C=2048, H=16, V=50304)


def _draw(device, shape, dtype, scale=1.0) -> torch.Tensor:
    return scale * torch.randn(shape, dtype=dtype, device=device)


class Case(NamedTuple):
    """An operation. Those of a decode step take a token of each of B rows, without gradients."""

    operation: str  # a name of kernels.Ops
    sizes: Sizes
    precision: str = "bf16"  # a name of PRECISIONS
    options: dict[str, Any] = {}  # noqa: RUF012 (never written)
    route: launch.Route | None = None  # of the feed-forward; None: as in `launch.ROUTES`

    def __str__(self):
        options = "".join(f" {name}={value}" for name, value in self.options.items())
        route = f" by {' '.join(self.route)}" if self.route else ""
        return f"{self.operation} {self.sizes.name} {self.precision}{options}{route}"

    def inputs(self, device) -> tuple:
        """Random operands; those that have a gradient require it."""
        name, B, T, C, H, V = self.sizes
        wide, narrow, stream = PRECISIONS[self.precision]
        draw = functools.partial(_draw, device)
        tokens = functools.partial(torch.randint, V, (B, T), device=device)

        def leaf(*what) -> torch.Tensor:
            return draw(*what).requires_grad_()

        match self.operation:
            case "layer_norm":
                return leaf((B, T, C), stream), leaf((C,), wide), leaf((C,), wide)
            case "rms_norm":  # of the queries in a packed projection (B, T, 3C), without a weight
                return leaf((B, T, 3 * H, C // H), narrow)[:, :, :H], None
            case "add_layer_norm":
                residual, branch = leaf((B, T, C), stream), leaf((B, T, C), narrow)
                return residual, branch, leaf((C,), wide), leaf((C,), wide)
            case "attention":
                q, k, v = (leaf((B, H, T, C // H), narrow) for _ in range(3))
                return q, k, (torch.cat((v, v), -1) if self.options.get("wide_values") else v)
            case "attention_qkv":
                return leaf((B, T, 3 * C), narrow), H
            case "feed_forward":  # weights are scaled so that activations have a variance near 1
                w1, b1 = leaf((4 * C, C), narrow, C**-0.5), leaf((4 * C,), narrow)
                w2, b2 = leaf((C, 4 * C), narrow, (4 * C) ** -0.5), leaf((C,), narrow)
                return leaf((B, T, C), narrow), w1, b1, w2, b2
            case "cross_entropy":
                return leaf((B, T, V), narrow), tokens()
            case "linear_cross_entropy":  # the lecture's head has a bias, GPT-2's has none
                has_bias = self.precision == "training" and name == LECTURE.name
                bias = leaf((V,), wide) if has_bias else None
                return leaf((B, T, C), narrow), leaf((V, C), wide, C**-0.5), bias, tokens()
            case "embedding":
                return tokens(), leaf((V, C), wide), leaf((T, C), wide)
            case "decode_linear":  # the first of the feed-forward: norm, bias and activation
                weight = draw((4 * C, C), narrow, C**-0.5)
                weight = weight.to(torch.int8) if self.options.get("int8") else weight
                return draw((B, C), narrow), weight, draw((4 * C,), narrow)
            case "decode_attention":
                position = torch.full((B,), T - 1, device=device)
                return draw((B, 3 * C), narrow), draw((2, B, H, T, C // H), narrow), position
            case "sample_token":
                return (draw((B, V), narrow),)
        raise KeyError(self.operation)

    def keywords(self, device) -> dict[str, Any]:
        """The options as keyword arguments of the operation, tensors included."""
        options = dict(self.options)
        if options.pop("int8", False):
            options["scale"] = torch.randn(4 * self.sizes.C, device=device)
        if "norm" in options:
            dtype = PRECISIONS[self.precision].narrow
            options["norm_weight"] = torch.randn(self.sizes.C, dtype=dtype, device=device)
        if self.operation == "embedding":
            options["dtype"] = PRECISIONS[self.precision].stream
        options.pop("wide_values", None)
        if length := options.pop("documents", 0):
            ids = torch.arange(self.sizes.T, device=device).expand(self.sizes.B, -1) // length
            options["ranges"] = kernels.KeyRanges.of_documents(ids)
        if options.pop("class_weight", False):
            options["weight"] = torch.ones(self.sizes.V, device=device)
        if options.pop("x_bias", False):
            options["x_bias"] = torch.zeros(self.sizes.C, device=device).requires_grad_()
        if options.pop("angles", False):
            T, D = self.sizes.T, self.sizes.C // self.sizes.H
            options["cos"], options["sin"] = torch.ones(2, T, D, device=device)
        return options

    def autocast(self, device):
        """The context of the forward pass: autocast if parameters are wider than the stream."""
        wide, narrow, stream = PRECISIONS[self.precision]
        return torch.autocast(torch.device(device).type, narrow, enabled=wide != stream)

    def run(self, ops, device) -> list[torch.Tensor]:
        """Run forward and, if there are gradients, backward; return outputs and gradients."""
        inputs, options = self.inputs(device), self.keywords(device)
        operands = [one for one in (*inputs, *options.values()) if isinstance(one, torch.Tensor)]
        leaves = [one for one in operands if one.requires_grad]
        with launch.routed(self.route):
            with self.autocast(device):
                outputs = getattr(ops, self.operation)(*inputs, **options)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            if not leaves:
                return list(outputs)
            # not randn_like: the same numbers whatever the strides of the output are
            upstream = [torch.randn(y.shape, dtype=y.dtype, device=y.device) for y in outputs]
            gradients = torch.autograd.grad(outputs, leaves, upstream)
        return [*(one.detach() for one in outputs), *gradients]


class Update(NamedTuple):
    """A step of an optimizer: over GPT-2's parameters, or by default over one weight and bias.

    With "autocast" as in a captured training step: gradients belong to 16-bit copies.
    """

    operation: str  # a name of kernels.Ops
    sizes: Sizes
    precision: str = "fp32"  # a name of PRECISIONS
    n_layer: int = 0  # of GPT-2

    def __str__(self):
        return f"{self.operation} {self.sizes.name} {self.precision}"

    def shapes(self) -> list[tuple[int, ...]]:
        _, _, T, C, _, V = self.sizes
        if not self.n_layer:
            return [(C, 4 * C), (C,)]
        norm, attention = [(C,), (C,)], [(3 * C, C), (3 * C,), (C, C), (C,)]
        block = [*norm, *attention, *norm, (4 * C, C), (4 * C,), (C, 4 * C), (C,)]
        return [(V, C), (T, C), *self.n_layer * block, *norm]

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.shapes()))

    def inputs(self, device) -> tuple:
        """Random parameters with gradients."""
        dtype = PRECISIONS[self.precision].wide
        parameters = tuple(torch.nn.Parameter(_draw(device, s, dtype)) for s in self.shapes())
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        return parameters

    def run(self, ops, device) -> list[torch.Tensor]:
        """Clip the gradients; return their norm and the updated parameters."""
        parameters = self.inputs(device)
        optimizer = getattr(ops, self.operation)(parameters)
        wide, narrow, _ = PRECISIONS[self.precision]
        if wide != narrow:
            copies = [one.detach().to(narrow).requires_grad_() for one in parameters]
            for parameter, copy in zip(parameters, copies, strict=True):
                parameter.grad, copy.grad = None, parameter.grad.to(narrow)
            optimizer.follow(dict(zip(parameters, copies, strict=True)))
        norm = optimizer.clip_grad_norm(1.0)
        optimizer.step()
        return [norm, *(parameter.detach() for parameter in parameters)]


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
    Case("attention", GPT2, "bf16", {"softcap": 30.0, "wide_values": True}),
    Case("attention_qkv", GPT2, "bf16", {"documents": 256}),
    Case("attention_qkv", GPT2_4K),
    Case("attention_qkv", LECTURE, "bf16", _DROPOUT),
    Case("attention_qkv", GPT2),
    Case("attention_qkv", LECTURE, "bf16", {"qk_norm": True, "angles": True} | _DROPOUT),
    Case("feed_forward", LECTURE, "bf16", {"activation": "relu"}),
    Case("feed_forward", LECTURE, "bf16", {"activation": "relu"}, launch.GEMM),
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
    Case("cross_entropy", GPT2, "bf16", {"class_weight": True, "label_smoothing": 0.1}),
    Case("cross_entropy", GPT2, "bf16", {"reduction": "none", "z_loss": 1e-4}),
    Case("linear_cross_entropy", GPT2),
    Case("linear_cross_entropy", GPT2, "bf16", {"reduction": "none"}),
    Case("linear_cross_entropy", GPT2, "bf16", {"softcap": 30.0}),
    Case("embedding", GPT2, "autocast"),
    Case("embedding", LECTURE, "fp32"),
)

UPDATES = (Update("adamw", GPT2), Update("adamw", GPT2, "bf16"), Update("adamw", GPT2, "autocast"))

ONE = GPT2._replace(name="gpt2 one token", B=1)

TOKENS = (
    Case("decode_linear", ONE, "bf16", {"norm": "layer_norm", "activation": "gelu_tanh"}),
    Case("decode_linear", ONE, "bf16", {"int8": True}),
    Case("decode_linear", ONE, "fp32"),
    Case("decode_attention", ONE),
    Case("decode_attention", ONE, "fp32", {"qk_norm": True}),
    Case("decode_attention", ONE, "bf16", {"window": 256}),
    Case("sample_token", ONE),
    Case("sample_token", ONE, "bf16", {"top_k": 40}),
    Case("sample_token", ONE, "bf16", {"top_k": 40, "top_p": 0.9}),
    Case("sample_token", ONE, "fp32", {"temperature": 0.0}),
)
