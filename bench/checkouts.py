"""Loads the models of two peers from their own source files."""

import ast
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FIELDS = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "dropout", "bias")


def nanogpt(checkout: Path, sizes: Mapping[str, Any]) -> torch.nn.Module:
    """The GPT of nanoGPT's model.py. sizes: at least the `FIELDS` of its GPTConfig."""
    path = Path(checkout) / "model.py"
    if not path.is_file():
        raise ValueError(f"{checkout} is not a checkout of nanoGPT: it has no model.py")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module.GPT(module.GPTConfig(**{name: sizes[name] for name in FIELDS}))


def lecture(gpt_py: Path, vocab_size: int, device: torch.device) -> torch.nn.Module:
    """The GPTLanguageModel of the lecture's gpt.py.

    The file is a script that trains, so only its imports, constants and classes are executed.
    """
    path = Path(gpt_py)
    if not path.is_file():
        raise ValueError(f"{gpt_py} does not exist; pass the path of the lecture's gpt.py")
    body = [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef))
        or (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant))
    ]
    names = {"__name__": "lecture_gpt", "vocab_size": vocab_size, "device": str(device)}
    exec(compile(ast.Module(body, type_ignores=[]), str(path), "exec"), names)  # noqa: S102, a file that the user names
    if "GPTLanguageModel" not in names:
        raise ValueError(f"{gpt_py} is not the lecture's gpt.py: it has no GPTLanguageModel")
    return names["GPTLanguageModel"]()
