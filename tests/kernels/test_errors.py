"""A wrong operand or option of a Triton operation is a ValueError that names it and its value."""

import ast
import math
import re

import pytest
import torch

from kernels import KeyRanges, torch_ops, triton_ops
from kernels.norms.layer_norm import WIDEST
from tests.operands import DEVICE

# operation -> arguments that are right; a tuple is the shape of a tensor
RIGHT = {
    "embedding": {"tokens": (2, 5), "token_table": (7, 3), "position_table": (5, 3)},
    "layer_norm": {"x": (2, 3, 8), "weight": (8,), "bias": (8,)},
    "rms_norm": {"x": (2, 3, 8), "weight": (8,)},
    "add_layer_norm": {"residual": (2, 8), "x": (2, 8), "weight": (8,), "bias": (8,)},
    "attention": {name: (1, 2, 3, 16) for name in "qkv"},
    "attention_qkv": {"qkv": (1, 5, 48), "n_head": 2},
    "feed_forward": {"x": (3, 8), "w1": (16, 8), "b1": (16,), "w2": (8, 16), "b2": (8,)},
    "cross_entropy": {"logits": (2, 3, 7), "targets": (2, 3), "weight": (7,)},
    "linear_cross_entropy": {
        **{"x": (4, 3), "weight": (7, 3), "bias": (7,), "targets": (4,), "class_weight": (7,)}
    },
    "decode_linear": {"x": (2, 8), "weight": (5, 8)},
    "decode_attention": {"qkv": (2, 48), "cache": (2, 2, 2, 10, 8), "position": (2,)},
    "sample_token": {"logits": (2, 5)},
}
INTEGERS = ("tokens", "targets", "position")

# operation: operand, then shapes of which each is wrong although the other operands are right
WRONG_SHAPES = """
    embedding: tokens (5,); position_table (4, 3) (5, 2) (3,)
    layer_norm: x () (2, 7); weight (7,) (1, 8); bias (1,)
    rms_norm: x () (2, 7); weight (7,)
    add_layer_norm: residual (2, 7) (1, 2, 8); weight (7,); x_bias (2, 8)
    attention: q (2, 3, 16) (2, 2, 3, 16) (1, 2, 3, 8) (1, 3, 3, 16); k (1, 2, 4, 16) (1, 1, 3, 16)
    attention_qkv: qkv (5, 48) (1, 5, 49) (1, 5, 0)
    feed_forward: x (3, 9) (); w1 (16,) (8, 16); b1 (8,); w2 (16, 8); b2 (16,)
    cross_entropy: logits () (2, 3, 0) (6, 7); targets (2, 3, 1) (6,); weight (6,) (1, 7)
    linear_cross_entropy: x (); weight (7, 3, 1) (0, 3); bias (3,); targets (5,); class_weight (3,)
    decode_linear: x (2, 9) (8,); bias (8,); residual (5,); norm_weight (5,)
    decode_attention: qkv (2, 47) (2, 56) (2, 32) (1, 2, 48); cache (2, 2, 10, 8) (3, 2, 2, 10, 8)
    decode_attention: position (1,); cos (9, 8)
    sample_token: logits (5,) (2, 0)
"""

# operation, changed arguments, message; a dtype is that of a tensor of the right shape
TRANSPOSED = torch.zeros(2, 2, 10, 2, 8, device=DEVICE).transpose(2, 3)
ANGLES = dict.fromkeys(("cos", "sin"), (10, 7))
LEARNED = torch.ones(7, device=DEVICE, requires_grad=True)
FLOATS = KeyRanges(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2))
WRONG = [
    ("embedding", {"tokens": torch.int32}, "tokens has dtype torch.int32; give torch.int64"),
    ("embedding", {"token_table": (0, 3), "position_table": None}, r"token_table \(0, 3\) do not"),
    ("cross_entropy", {"targets": torch.int32}, "targets has dtype torch.int32"),
    ("cross_entropy", {"weight": LEARNED}, "class weights have no gradient"),
    ("linear_cross_entropy", {"class_weight": LEARNED}, "class weights have no gradient"),
    ("linear_cross_entropy", {"targets": torch.int32}, "targets has dtype torch.int32"),
    ("linear_cross_entropy", {"x": torch.half}, "x torch.float16, weight torch.float32"),
    ("feed_forward", {"x": torch.bfloat16}, "x torch.bfloat16, w1 torch.float32"),
    ("feed_forward", {"activation": "swish"}, "'swish' is not supported; choose one of relu, gelu"),
    ("attention", {"k": torch.half}, "q torch.float32, k torch.float16, .*; give one"),
    ("attention", dict.fromkeys("qkv", torch.int64), "q has dtype torch.int64; give fp16, bf16,"),
    ("attention", dict.fromkeys("qkv", (1, 2, 3, 257)), "D is 257; give heads of 1 to 256"),
    ("attention", {"ranges": FLOATS}, r"float32 \(1, 4, 2\); give int32"),
    ("attention", {"softcap": -1.0}, "softcap is -1.0; give a positive number, or 0"),
    ("attention", {"v": (1, 2, 3, 257)}, "Dv is 257; give heads of 1 to 256"),
    ("attention", {"causal": "bottom"}, "causal is 'bottom'; give True or 'top_left'"),
    ("attention_qkv", {"qkv": torch.int64}, "qkv has dtype torch.int64; give fp16"),
    ("attention_qkv", {"n_head": 0}, "H = 0"),
    ("attention_qkv", {"n_kv_head": 0}, "Hkv = 0"),
    ("attention_qkv", {"qkv": (1, 3, 80), "n_head": 4, "n_kv_head": 3}, "H a multiple of Hkv"),
    ("attention_qkv", {"cos": (5, 8)}, r"cos and sin are \(5, 8\) and None for D = 8; give both"),
    ("attention_qkv", dict.fromkeys(("cos", "sin"), (4, 8)), r"cos \(4, 8\)"),
    ("attention_qkv", dict.fromkeys(("cos", "sin"), (5, 6)), r"\(5, 6\) for D = 8"),
    ("attention_qkv", {"cos": (5, 8), "sin": (5,)}, r"sin \(5,\)"),
    ("decode_linear", {"norm": "layer_norm"}, "norm is 'layer_norm'; give layer_norm or rms_norm"),
    ("decode_linear", {"norm_weight": (8,)}, "norm is None; give layer_norm or rms_norm with"),
    ("decode_linear", {"norm": "group", "norm_weight": (8,)}, "norm is 'group'"),
    ("decode_linear", {"activation": "tanh"}, "'tanh' is not supported"),
    ("decode_linear", {"scale": (5,)}, "with a scale; give a scale with an int8 weight"),
    ("decode_attention", {"cos": (10, 8)}, "give both cos and sin"),
    ("decode_attention", {"cache": torch.half}, "give a contiguous cache of qkv's dtype"),
    ("decode_attention", {"cache": TRANSPOSED}, "give a contiguous cache of qkv's dtype"),
    ("decode_attention", {"window": -1}, "window is -1; give at least 1 key"),
    ("decode_attention", {"position": torch.int32}, "position has dtype torch.int32"),
    ("decode_attention", {"qkv": (2, 42), "cache": (2, 2, 2, 10, 7), **ANGLES}, "D is 7"),
    ("decode_attention", {"qkv": (2, 771), "cache": (2, 2, 1, 10, 257)}, "D is 257"),
]
for scale in (0, -1, math.nan, math.inf):
    WRONG += [("attention", {"scale": scale}, "give a positive number")]
for name in ("cross_entropy", "linear_cross_entropy"):
    WRONG += [
        (name, {"reduction": "average"}, "reduction is 'average'; give none, mean or sum"),
        (name, {"label_smoothing": 1.5}, r"label_smoothing is 1\.5; give a number from 0 to 1"),
        (name, {"softcap": -1.0}, "softcap is -1.0; give a finite number of at least 0"),
        (name, {"z_loss": math.nan}, "z_loss is nan; give a finite number of at least 0"),
    ]
for dtype in (torch.int64, torch.complex64):
    WRONG += [
        ("cross_entropy", {"logits": dtype}, f"logits has dtype {dtype}; give fp16"),
        ("linear_cross_entropy", {"class_weight": dtype}, f"class_weight has dtype {dtype}; give"),
    ]
for name in ("attention", "attention_qkv"):
    for options in ({"window": -1}, {"window": 2, "causal": False}):
        WRONG += [(name, options, "window is .* give at least 1 key with causal=True")]
for name in ("layer_norm", "rms_norm", "add_layer_norm"):
    for dtype in (torch.int64, torch.complex64):
        WRONG += [(name, {"x": dtype}, f"x has dtype {dtype}; give fp16, bf16, fp32 or fp64")]
    for columns, message in ((0, "do not fit"), (WIDEST + 1, "are too wide; give at most 8,192")):
        changes = {of: (*shape[:-1], columns) for of, shape in RIGHT[name].items()}
        WRONG += [(name, changes, rf", {columns}\).*{message}")]
for name in ("add_layer_norm", "attention", "attention_qkv"):
    WRONG += [(name, {"dropout_p": 1.5}, r"dropout_p is 1\.5; give a probability")]


def call(operation, changes):
    arguments = {}
    for name, argument in (RIGHT[operation] | changes).items():
        dtype = torch.int64 if name in INTEGERS else torch.float32
        if isinstance(argument, torch.dtype):
            argument, dtype = RIGHT[operation][name], argument
        if isinstance(argument, tuple) and argument is not FLOATS:
            argument = torch.zeros(argument, dtype=dtype, device=DEVICE)
        arguments[name] = argument
    return getattr(triton_ops.OPS, operation)(**arguments)


@pytest.mark.parametrize("line", WRONG_SHAPES.strip().splitlines())
def test_wrong_shapes_are_named(line):
    operation, _, operands = line.strip().partition(": ")
    for operand in operands.split("; "):
        name, _, shapes = operand.partition(" ")
        for shape in re.findall(r"\(.*?\)", shapes):
            message = rf"^{operation}: .*\b{name} {re.escape(shape)}"
            with pytest.raises(ValueError, match=message):
                call(operation, {name: ast.literal_eval(shape)})


@pytest.mark.parametrize(("operation", "changes", "message"), WRONG)
def test_wrong_arguments_are_named(operation, changes, message):
    with pytest.raises(ValueError, match=message):
        call(operation, changes)


def test_pytorchs_attention_needs_causality_for_a_window():
    q = torch.zeros(1, 1, 3, 4, device=DEVICE)
    with pytest.raises(ValueError, match="window is 2, which needs causal=True"):
        torch_ops.attention(q, q, q, window=2, causal=False)
