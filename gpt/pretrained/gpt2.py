"""Convert GPT-2's weights between the layout of `transformers` and the packed one, bit for bit.

The Conv1D of `transformers` has the transpose of a Linear's weight; query, key and value are one
matrix there too, in the same order. Everything else is a change of name.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .. import UserError, files
from ..config.model import ModelConfig
from ..models.layouts import State, check_layout, rename
from ..models.packed import GPT
from ..runs import checkpoint

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
    check_layout(_expected(config), ours)
    return ours


def export(run: Path, folder: Path) -> None:
    """Export the best model of a run to `transformers`; UserError if GPT-2 lacks a feature."""
    record, tensors = checkpoint.load(run, "best")
    config = ModelConfig.from_dict(record["train"]["model"], run / "best.json")
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    switches = ("qk_norm", "head_bias", "logit_softcap", "n_kv_head", "window", "source_size")
    used = {switch for switch in switches if getattr(config, switch)}
    known = {"layer_norm", "learned", *activations}
    used |= {config.norm, config.position, config.activation} - known
    if used:
        raise UserError(f"GPT-2 has no {', '.join(sorted(used))}, which the run in {run} uses")
    described = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": activations[config.activation],
        **{name: getattr(config, name) for name in SIZES},
        "n_positions": config.block_size,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.embedding_dropout_p,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }
    ours = tensors["weights"]
    check_layout(_expected(config), ours)
    theirs: State = {}  # a bias that the model lacks is zero there
    names = {our: their for their, our in NAMES.items()}
    for name, tensor in ours.items():
        short = name if name == "lm_head.weight" else "transformer." + rename(name, names)
        theirs[short] = tensor.T.contiguous() if short.endswith(TRANSPOSED) else tensor
        if name.startswith(("blocks.", "ln_f.")) and name.endswith(".weight"):
            bias = short.removesuffix("weight") + "bias"
            theirs.setdefault(bias, torch.zeros(tensor.shape[0]))
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "config.json", described)
    save_file(theirs, folder / "model.safetensors", metadata={"format": "pt"})


def _expected(config: ModelConfig) -> State:
    with torch.device("meta"):
        state = GPT(config, ops=None).state_dict()
    if config.tied_head:
        del state["lm_head.weight"]
    return state
