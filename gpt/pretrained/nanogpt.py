"""nanoGPT's ckpt.pt: its model and tokenizer, and its run, continued as one of ours.

A file does not say which GELU it was trained with. nanoGPT changed to the exact one on 2023-05-17;
on 2023-01-27 it had added `bias` to the arguments of a model, and on 2023-05-06 the embeddings to
the weights that its optimizer decays: a file without either is an old one.
"""

import fcntl
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .. import UserError
from ..config.model import ModelConfig
from ..config.presets import PRESETS
from ..config.train import TrainConfig
from ..data.corpus import open_data
from ..data.token_files import read_meta
from ..data.tokenizers import GPT2Tokenizer, Tokenizer
from ..models.layouts import State, check_layout
from ..runs import checkpoint
from ..runs.run_state import ADAMW_STATE, ALL_KINDS, RunState, check_finite
from .gpt2 import fitted, packed_from_gpt2
from .state_files import read_content, state_of

ARGUMENTS = {"vocab_size", "block_size", "n_layer", "n_head", "n_embd", "dropout", "bias"}
OPTIONS = (
    *("learning_rate", "decay_lr", "warmup_iters", "lr_decay_iters", "min_lr", "grad_clip"),
    *("batch_size", "gradient_accumulation_steps", "max_iters", "eval_interval", "eval_iters"),
    *("log_interval", "dtype"),
)
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)


def config_of(content: dict, source: Path) -> ModelConfig:
    """The model of a ckpt.pt; raises UserError if nanoGPT has no such model."""
    arguments = content["model_args"]
    if not isinstance(arguments, dict) or {*arguments, "bias"} != ARGUMENTS:
        raise UserError(f"{source}: its model_args are not {', '.join(sorted(ARGUMENTS))}")
    try:
        decayed = content["optimizer"]["param_groups"][0]["params"]
        is_old = len(decayed) == 4 * arguments["n_layer"]  # without embeddings
    except MALFORMED:
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


def continue_run(folder: Path, given: dict[str, Any]) -> None:
    """Make the ckpt.pt in `folder` a run to resume, last.json and best.json, unless it is one.

    given: options of the command line; data, data_dir and tokenizer name the data.
    """
    last, path = folder / "last.json", folder / "ckpt.pt"
    if last.exists() or not path.is_file():
        return
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the other ranks wait
            if not last.exists():
                _convert(path, read_content(path), given)
    except OSError as error:
        raise UserError(f"--out-dir {folder} is not usable: {error.strerror}") from None


def _convert(path: Path, content: dict, given: dict[str, Any]) -> None:
    try:
        model = config_of(content, path)
        config, optimizer = content["config"], content["optimizer"]
        options = {name: config[name] for name in OPTIONS}
        options["beta1"], options["beta2"] = optimizer["param_groups"][0]["betas"]
        options["weight_decay"] = optimizer["param_groups"][0]["weight_decay"]
        if config["device"] == "cpu":
            options["dtype"] = "float32"  # nanoGPT's autocast is off there
        progress = {"step": content["iter_num"], "best_val_loss": float(content["best_val_loss"])}
        weights = fitted(packed_from_gpt2(state_of(content, path)), model)
        moments = _moments(optimizer, weights)
    except UserError:
        raise
    except MALFORMED:
        problem = f"{path} does not hold a run of nanoGPT since 2023-05-06"
        raise UserError(f"{problem}; use --init-from {path}") from None
    check_finite(weights, path)
    data, data_dir = given.get("data", _dataset(content)), given.get("data_dir", "data")
    gpt2 = gpt2_tokenizer(model.vocab_size)
    kind = given.get("tokenizer", "gpt2" if gpt2 else "char")
    options |= {"data": data, "data_dir": data_dir, "tokenizer": kind, "out_dir": str(path.parent)}
    options = PRESETS["shakespeare-char"].to_dict() | options | {"model": model.to_dict()}
    train = TrainConfig.from_dict(options, path)
    state = RunState.from_dict(asdict(RunState()) | progress, path)
    tokenizer = open_data(data, data_dir, kind).tokenizer
    if tokenizer.vocab_size != (gpt2 or model).vocab_size:
        problem = f"{data} has {tokenizer.vocab_size} tokens, but {path} has {model.vocab_size}"
        raise UserError(f"{problem}; name its data with --data or --data-dir")
    record = {**asdict(state), "train": train.to_dict(), "tokenizer": tokenizer.to_json()}
    tensors = {"weights": weights, "optimizer": moments, "random": {}}
    record["scaler"] = {}
    checkpoint.save(path.parent, {"best": ("weights",), "last": ALL_KINDS}, tensors, record)
    print(f"{path}, nanoGPT's run at step {state.step}, is now last.json and best.json beside it")


def _moments(optimizer: dict, weights: State) -> State:
    """AdamW's state as our runs keep it; nanoGPT decays all weights of two dimensions."""
    names = sorted(weights, key=lambda name: weights[name].dim() < 2)
    decayed, others = (group["params"] for group in optimizer["param_groups"])
    if len(decayed) != sum(weight.dim() > 1 for weight in weights.values()):
        raise ValueError("the groups are of nanoGPT before 2023-05-06")
    tensors = {
        f"0/{name}/{key}": torch.as_tensor(optimizer["state"][index][key]).float()
        for name, index in zip(names, [*decayed, *others], strict=True)
        for key in ADAMW_STATE
    }
    for key in ADAMW_STATE[1:]:
        check_layout(weights, {name: tensors[f"0/{name}/{key}"] for name in names})
    return tensors
