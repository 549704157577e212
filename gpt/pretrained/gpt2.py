"""Convert GPT-2's weights between the layout of `transformers` and the packed one, bit for bit.

The Conv1D of `transformers` has the transpose of a Linear's weight; query, key and value are one
matrix there too, in the same order. Everything else is a change of name.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .. import UserError
from ..config.model import ModelConfig
from ..models.layouts import State, check_layout, rename
from ..models.packed import GPT

NAMES = {  # theirs -> ours
    "wte.": "token_embedding_table.",
    "wpe.": "position_embedding_table.",
    "h.": "blocks.",
    ".ln_1.": ".ln1.",
    ".attn.c_attn.": ".sa.qkv.",
    ".attn.c_proj.": ".sa.proj.",
    ".ln_2.": ".ln2.",
    ".mlp.c_fc.": ".ffwd.up.",
    ".mlp.c_proj.": ".ffwd.down.",
}
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
ACTIVATIONS: dict[str, Any] = {  # theirs -> ours
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}
SIZES = ("vocab_size", "n_layer", "n_head", "n_embd")
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # masks, in old files


def config_from_gpt2(record: dict, source: Path) -> ModelConfig:
    """The config for a config.json of `transformers`; a UserError starts with `source`."""
    required = {
        "model_type": "gpt2",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    }
    for name, value in required.items():
        if record.get(name, value) != value:
            raise UserError(f"{source} is not supported: {name} is {record[name]!r}, not {value!r}")
    activation = ACTIVATIONS.get(record.get("activation_function", "gelu_new"))
    try:
        C, width = record["n_embd"], record.get("n_inner") or 4 * record["n_embd"]
        sizes = {name: record[name] for name in SIZES}
        sizes["block_size"] = record["n_positions"]
    except KeyError as name:
        raise UserError(f"{source} is not a GPT-2: its config.json has no {name}") from None
    if activation is None or width != 4 * C:
        raise UserError(f"{source} has a feed-forward with an unsupported activation or width")
    return ModelConfig(
        **sizes,
        embedding_dropout=-1.0,
        qkv_bias=True,
        head_bias=False,
        tied_head=record.get("tie_word_embeddings", True),
        activation=activation,
        projection_init="scaled",
    )


def packed_from_gpt2(path: Path, config: ModelConfig) -> State:
    """The weights of `packed.GPT` from a safetensors file; a tied head is left out."""
    try:
        theirs = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    ours: State = {}
    for name, tensor in theirs.items():
        short = name.removeprefix("transformer.")
        if BUFFERS.fullmatch(short) or (short == "lm_head.weight" and config.tied_head):
            continue
        tensor = tensor.float()
        ours[rename(short, NAMES)] = tensor.T.contiguous() if short.endswith(TRANSPOSED) else tensor
    check_layout(packed_layout(config), ours)
    return ours


def packed_layout(config: ModelConfig) -> State:
    """The weights of `packed.GPT` without data; a tied head is left out."""
    with torch.device("meta"):
        state = GPT(config, ops=None).state_dict()
    if config.tied_head:
        del state["lm_head.weight"]
    return state
