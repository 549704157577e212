"""The models of two peers, taken from their own files as these stand: nothing of them is copied."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch


def nanogpt(checkout: Path) -> ModuleType:
    """nanoGPT's model.py, with its GPT and GPTConfig."""
    path = Path(checkout) / "model.py"
    if not path.is_file():
        raise ValueError(f"{checkout} is no checkout of nanoGPT: it has no model.py")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def lecture(gpt_py: Path, vocab_size: int, device: torch.device) -> SimpleNamespace:
    """The names of the lecture's gpt.py, with its GPTLanguageModel, without what it does.

    It is a program that reads a text and trains: of its statements the imports, the numbers and
    the classes are run, and not the rest.
    """
    path = Path(gpt_py)
    if not path.is_file():
        raise ValueError(f"{gpt_py} is not there; give the lecture's gpt.py")
    kept = [node for node in ast.parse(path.read_text()).body if _says_what_is(node)]
    names = {"__name__": "lecture_gpt", "vocab_size": vocab_size, "device": str(device)}
    exec(compile(ast.Module(kept, type_ignores=[]), str(path), "exec"), names)
    if "GPTLanguageModel" not in names:
        raise ValueError(f"{gpt_py} is not the lecture's gpt.py: it has no GPTLanguageModel")
    return SimpleNamespace(**names)


def _says_what_is(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef))
