"""nanoGPT's ckpt.pt: its model and tokenizer.

A file does not say which GELU it was trained with. nanoGPT changed to the exact one on 2023-05-17;
on 2023-01-27 it had added `bias` to the arguments of a model, and on 2023-05-06 the embeddings to
the weights that its optimizer decays: a file without either is an old one.
"""

from pathlib import Path

from .. import UserError
from ..config.model import ModelConfig
from ..config.presets import PRESETS
from ..data.token_files import read_meta
from ..data.tokenizers import GPT2Tokenizer, Tokenizer

ARGUMENTS = {"vocab_size", "block_size", "n_layer", "n_head", "n_embd", "dropout", "bias"}


def config_of(content: dict, source: Path) -> ModelConfig:
    """The model of a ckpt.pt; raises UserError if nanoGPT has no such model."""
    arguments = content["model_args"]
    if not isinstance(arguments, dict) or {*arguments, "bias"} != ARGUMENTS:
        raise UserError(f"{source}: its model_args are not {', '.join(sorted(ARGUMENTS))}")
    try:
        decayed = content["optimizer"]["param_groups"][0]["params"]
        is_old = len(decayed) == 4 * arguments["n_layer"]  # without embeddings
    except (LookupError, TypeError, AttributeError):
        is_old = False
    is_old |= "bias" not in arguments
    model = PRESETS["gpt2"].model.to_dict() | {"bias": True} | arguments
    model["activation"] = "gelu_tanh" if is_old else "gelu"
    return ModelConfig.from_dict(model, source)


def tokenizer_of(content: dict, vocab_size: int, folders: list[Path]) -> Tokenizer | None:
    """That of the dataset's meta.pkl below one of the folders, or GPT-2's if the size fits."""
    for folder in (each / _dataset(content) for each in folders):
        if (folder / "meta.pkl").is_file():
            return read_meta(folder)
    return gpt2_tokenizer(vocab_size)


def gpt2_tokenizer(vocab_size: int) -> Tokenizer | None:
    """GPT-2's tokenizer for a vocabulary of its size, or padded as nanoGPT does."""
    return GPT2Tokenizer() if GPT2Tokenizer.vocab_size <= vocab_size <= 50304 else None


def _dataset(content: dict) -> str:
    """The dataset of the run; a file from a stranger cannot name another path."""
    config = content.get("config")
    name = config.get("dataset") if isinstance(config, dict) else None
    return name if isinstance(name, str) and name == Path(name).name else "unknown"
