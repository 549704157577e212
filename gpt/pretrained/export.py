"""Export the best model of a run as a folder that `transformers` loads as GPT-2.

python -m gpt.pretrained.export RUN FOLDER
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from .. import UserError, files
from ..config.model import ModelConfig
from ..models.layouts import State, check_layout, rename
from ..runs import checkpoint
from .gpt2 import ACTIVATIONS, NAMES, SIZES, TRANSPOSED, packed_layout


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
    check_layout(packed_layout(config), ours)
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


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    run, folder = arguments
    try:
        export(Path(run), Path(folder))
    except (UserError, OSError) as error:
        print(f"gpt.pretrained.export: {error}", file=sys.stderr)
        return 2
    print(f"written to {folder}: GPT2LMHeadModel.from_pretrained({folder!r})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
