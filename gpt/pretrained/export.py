"""Export the best model of a run to `transformers`.

    python -m gpt.pretrained.export RUN FOLDER

The weights keep their bits. A run on GPT-2's tokens is used with the tokenizer "openai-community/
gpt2"; `transformers` has none for the lecture's characters.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import UserError, hardware
from ..config.base import Config, option
from ..config.cli import parse
from ..config.model import ModelConfig
from ..data.tokenizers import from_json
from ..files import new_folder
from ..models.layouts import State, check_layout, rename
from ..process import protect_streams, raising_signals
from ..runs import checkpoint
from ..runs.run_state import check_finite
from .gpt2 import ACTIVATIONS, NAMES, SIZES, TRANSPOSED, packed_layout


@dataclass(frozen=True)
class ExportConfig(Config):
    """What to export, and where."""

    run: str = option("", "the folder of a run", positional=True)
    out: str = option("", "the folder to write, for transformers", positional=True)


def export(run: Path, out: Path) -> str:
    """Write a folder for `transformers`; returns the line to print.

    Raises UserError if GPT-2 lacks a feature that the run uses, or if `out` exists already.
    """
    record, tensors = checkpoint.load(run, "best")
    config = ModelConfig.from_dict(record["train"]["model"], run / "best.json")
    tokenizer = from_json(record["tokenizer"])
    check_finite(tensors["weights"], run / "best.json")
    weights = _rename(config, tensors["weights"], run)
    for name, tensor in weights.items():
        weights[name] = tensor.T.contiguous() if name.endswith(TRANSPOSED) else tensor
    described = _described(config, tokenizer.end_of_text)
    try:
        with new_folder(out) as folder:
            folder.write_json("config.json", described)
            folder.write("model.safetensors", checkpoint.serialised(weights, format="pt"))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    return f"written to {out}: transformers.GPT2LMHeadModel.from_pretrained({str(out)!r})"


def _rename(config: ModelConfig, ours: State, run: Path) -> State:
    """Weights under the names of `transformers`, and zero for a bias that the model lacks."""
    switches = ("qk_norm", "head_bias", "logit_softcap", "window", "document_mask")
    used = {switch for switch in switches if getattr(config, switch)}
    used |= {config.norm, config.position} - {"layer_norm", "learned"}
    used |= {config.activation} - set(ACTIVATIONS.values())
    used |= {"n_kv_head"} if config.head_counts[1] < config.n_head else set()
    if used:
        raise UserError(f"GPT-2 has no {', '.join(sorted(used))}, which the run in {run} uses")
    check_layout(packed_layout(config), ours)
    names = {our: their for their, our in NAMES.items()}
    theirs: State = {}
    for name, tensor in ours.items():
        short = name if name == "lm_head.weight" else "transformer." + rename(name, names)
        theirs[short] = tensor
        if name.startswith(("blocks.", "ln_f.")) and name.endswith(".weight"):
            theirs.setdefault(short.removesuffix("weight") + "bias", torch.zeros(len(tensor)))
    return theirs


def _described(config: ModelConfig, end_of_text: int | None) -> dict:
    """The config.json."""
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": activations[config.activation],
        **{name: getattr(config, name) for name in SIZES},
        "n_positions": config.block_size,
        "n_inner": config.feed_forward_width,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.embedding_dropout_p,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
    }


def main(arguments: list[str]) -> int:
    try:
        options = parse(ExportConfig(), arguments, "Export the best model of a run.")
        if not options.out:
            raise UserError("give the folder of a run, and the folder to write")
        with raising_signals(), hardware.enough_memory("export it on a machine with more"):
            print(export(Path(options.run), Path(options.out)))
    except UserError as error:
        print(f"gpt.pretrained.export: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("\ngpt.pretrained.export: stopped; nothing was written", file=sys.stderr)
        return getattr(stop, "exit_code", 130)
    return 0


if __name__ == "__main__":
    protect_streams()
    sys.exit(main(sys.argv[1:]))
