"""Export the best model of a run, with its tokenizer, to `transformers`.

    python -m gpt.pretrained.export RUN FOLDER

The weights keep their bits.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .. import UserError, files
from ..config.model import ModelConfig
from ..data.huggingface_tokenizer import HuggingFaceTokenizer, of_characters, of_ranks
from ..data.tokenizers import ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer, from_json
from ..models.layouts import State, check_layout, rename
from ..runs import checkpoint
from .gpt2 import ACTIVATIONS, NAMES, SIZES, TRANSPOSED, packed_layout


def export(run: Path, out: Path) -> list[str]:
    """Write a folder for `transformers`; returns the sentences to print.

    Raises UserError if GPT-2 lacks a feature that the run uses, and OSError.
    """
    record, tensors = checkpoint.load(run, "best")
    config = ModelConfig.from_dict(record["train"]["model"], run / "best.json")
    weights = _with_biases(config, tensors["weights"], run)
    tokenizer = from_json(record["tokenizer"])
    try:
        equal, notes = equal_of(tokenizer), []
    except UserError as error:
        equal, notes = None, [f"without a tokenizer: {error}"]
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / "config.json", _config(config, tokenizer.end_of_text))
    save_file(_transformers(weights), out / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):  # of an earlier run
        (out / name).unlink(missing_ok=True)
    if equal:
        files.write_whole(out / "tokenizer.json", equal.text.encode())
        files.write_json(out / "tokenizer_config.json", _about(equal, config))
    return [f"written to {out}: transformers.pipeline('text-generation', {str(out)!r})", *notes]


def _with_biases(config: ModelConfig, packed: State, run: Path) -> State:
    """The weights of a GPT-2, where a bias that the model lacks is zero; UserError if it isn't."""
    switches = ("qk_norm", "head_bias", "logit_softcap", "window", "document_mask", "source_size")
    used = {switch for switch in switches if getattr(config, switch)}
    used |= {config.norm, config.position} - {"layer_norm", "learned"}
    used |= {config.activation} - set(ACTIVATIONS.values())
    used |= {"n_kv_head"} if config.head_counts[1] < config.n_head else set()
    if used:
        raise UserError(f"GPT-2 has no {', '.join(sorted(used))}, which the run in {run} uses")
    check_layout(packed_layout(config), packed)
    weights = dict(packed)
    for name, tensor in packed.items():
        if name.startswith(("blocks.", "ln_f.")) and name.endswith(".weight"):
            weights.setdefault(name.removesuffix("weight") + "bias", torch.zeros(len(tensor)))
    return weights


def _transformers(packed: State) -> State:
    """Weights under the names of `transformers`."""
    names = {our: their for their, our in NAMES.items()}
    theirs: State = {}
    for name, tensor in packed.items():
        short = name if name == "lm_head.weight" else "transformer." + rename(name, names)
        theirs[short] = tensor.T.contiguous() if short.endswith(TRANSPOSED) else tensor
    return theirs


def equal_of(tokenizer: Tokenizer) -> HuggingFaceTokenizer:
    """The tokenizer of Hugging Face that gives the same tokens for every text."""
    if isinstance(tokenizer, CharTokenizer):
        return of_characters(tokenizer.characters)
    if isinstance(tokenizer, ByteTokenizer):
        return of_ranks({bytes([byte]): byte for byte in range(256)})
    if isinstance(tokenizer, GPT2Tokenizer):
        return of_ranks(tokenizer.ranks, tokenizer.end_of_text)
    return tokenizer


def _config(config: ModelConfig, end_of_text: int | None) -> dict[str, Any]:
    """The config.json of `transformers`."""
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": activations[config.activation],
        **{name: getattr(config, name) for name in SIZES},
        "n_positions": config.block_size,
        "n_inner": config.feed_forward_widths[0],
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.embedding_dropout_p,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
    }


def _about(equal: HuggingFaceTokenizer, config: ModelConfig) -> dict[str, Any]:
    """The tokenizer_config.json of `transformers`."""
    end = [name for name, number in equal.numbers().items() if number == equal.end_of_text]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.block_size,
        "clean_up_tokenization_spaces": False,
        **{f"{kind}_token": name for name in end for kind in ("bos", "eos")},
    }


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(*export(Path(arguments[0]), Path(arguments[1])), sep="\n")
    except (UserError, OSError) as error:
        print(f"gpt.pretrained.export: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
