"""nanoGPT's ckpt.pt: its model and tokenizer.

A file does not say which GELU it was trained with; before 2023-05-17 it was the tanh approximation,
which differs by less than 5e-4. Files without `bias` are older, and are refused.
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
    if not isinstance(arguments, dict) or {*arguments} != ARGUMENTS:
        raise UserError(f"{source}: its model_args are not {', '.join(sorted(ARGUMENTS))}")
    return ModelConfig.from_dict(PRESETS["gpt2"].model.to_dict() | arguments, source)


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
