"""Convert GPT-2's weights between the layout of `transformers` and the packed one, bit for bit.

The Conv1D of `transformers` has the transpose of a Linear's weight; query, key and value are one
matrix there too, in the same order. Everything else is a change of name.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch

from .. import UserError
from ..config.model import ModelConfig
from ..data.tokenizers import GPT2Tokenizer
from ..files import read_json
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
ACTIVATIONS: dict[str, Any] = {  # theirs -> ours; the first of each is exported
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_tanh"),
    **{"gelu": "gelu", "gelu_python": "gelu", "relu": "relu", "relu2": "relu_squared"},
}
TABLES = ("token_embedding_table.weight", "lm_head.weight", "lm_head.bias")  # a row per token
SIZES = ("vocab_size", "n_layer", "n_head", "n_embd")
# of the tokens and merges in the tokenizer.json of GPT-2, one a line
TOKENIZER_SHA256 = "9e52e2d09323136cf31fca11e3a80463fe013e9ccfa1c04ac36c8bb825af904d"


def config_from_gpt2(record: dict, source: Path) -> ModelConfig:
    """The config for a config.json of `transformers`; a UserError starts with `source`."""
    allowed: dict[str, tuple] = {
        "model_type": ("gpt2",),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "activation_function": tuple(ACTIVATIONS),
    }
    for name, values in allowed.items():
        if (value := record.get(name, values[0])) not in values:
            known = ", ".join(map(str, values))
            raise UserError(f"{source} is not supported: {name} is {value!r}, not {known}")
    fields = {
        **{name: record.get(name) for name in SIZES},
        "block_size": record.get("n_positions"),
        "n_inner": 0 if record.get("n_inner") is None else record["n_inner"],
        "norm_eps": record.get("layer_norm_epsilon", 1e-5),
        "embedding_dropout": -1,
        "qkv_bias": True,
        "head_bias": False,
        "tied_head": record.get("tie_word_embeddings", True),
        "activation": ACTIVATIONS[record.get("activation_function", "gelu_new")],
        "projection_init": "scaled",
    }
    return ModelConfig.from_dict(fields, source / "config.json")


def read_tokenizer(folder: Path) -> GPT2Tokenizer | None:
    """GPT-2's tokenizer if the folder's tokenizer.json is its; None if there is no such file.

    Raises UserError for the tokenizer.json of another tokenizer, and for a damaged one.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    model = read_json(path).get("model")
    try:
        numbers, merges = model["vocab"], model["merges"]  # type: ignore[index]
        lines = [*sorted(numbers, key=numbers.__getitem__)]
        lines += [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
        digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
    except (TypeError, KeyError):
        digest = ""
    if digest != TOKENIZER_SHA256:
        raise UserError(f"{path} is not of GPT-2's tokenizer, the only one that is supported")
    return GPT2Tokenizer()


def packed_from_gpt2(theirs: State) -> State:
    """The weights of `packed.GPT` from a state dict of GPT-2 or of nanoGPT, which has Linears."""
    ours: State = {}
    shapes = [tensor.shape for name, tensor in theirs.items() if name.endswith("c_attn.weight")]
    is_conv1d = any(shape[:1] < shape[1:] for shape in shapes)  # (C, 3C) there, here (3C, C)
    transposed = TRANSPOSED if is_conv1d else ()
    for name, tensor in theirs.items():
        short = name.removeprefix("transformer.")
        if (our := rename(short, NAMES)) in ours:
            raise UserError(f"weights: the state dict has {our!r} twice")
        ours[our] = tensor.t() if short.endswith(transposed) and tensor.dim() == 2 else tensor
    return ours


def fitted(state: State, config: ModelConfig) -> State:
    """The weights of `packed.GPT` in fp32, with a tied head only once, as a run keeps them.

    Raises UserError for another model's weights. A tied head may have either name, or both.
    """
    table, head = TABLES[:2]
    if config.tied_head and head in state:
        state = {table: state[head], **state}
        if not torch.equal(state[table].float(), state.pop(head).float()):
            raise UserError(f"weights: {head} is not {table}, and the config ties them")
    check_layout(packed_layout(config), state)
    return {name: tensor.float().contiguous() for name, tensor in state.items()}


def packed_layout(config: ModelConfig) -> State:
    """The names and shapes of the weights that a run of this model keeps."""
    sizes = (3 * config.n_embd, config.vocab_size, config.block_size, config.feed_forward_width)
    if config.vocab_size < 1 or config.n_embd * max(sizes) >= 2**60:
        raise UserError(f"weights: a matrix of the model has the size 0 or more than {2**60}")
    with torch.device("meta"):
        state = GPT(config, ops=None).state_dict()
    if config.tied_head:
        del state["lm_head.weight"]
    return state
