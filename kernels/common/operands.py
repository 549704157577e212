"""One check of the shapes and dtypes of operands, with one wording, for every operation."""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import torch

from .operator import is_traced

NEVER_EMPTY = ("C", "D", "F", "K", "V")  # channels, features, vocabulary
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_operands(
    operation: str, form: str, *operands: torch.Tensor | None, one_dtype: bool = False
) -> None:
    """Raise ValueError unless the operands, except those that are None, have the given form.

    `form` is the name and shape of each operand, as in "x (..., C), targets (...) int64". A letter
    is one size everywhere, "..." any dimensions that are the same everywhere, and ">= T" at least
    T. Operands are fp16, bf16, fp32 or fp64, unless "int64" or "or int8" follows; with `one_dtype`,
    floating-point operands must share a dtype.
    """
    described = tuple(None if x is None else (x.shape, x.dtype) for x in operands)
    check = _check if is_traced() else _cached_check  # traced sizes may be symbols
    check(operation, form, described, one_dtype)


def _check(operation: str, form: str, described: tuple, one_dtype: bool) -> None:
    parsed = zip(_parsed(form), described, strict=True)
    given = [(*name, *x) for name, x in parsed if x is not None]
    sizes: dict[str, Any] = {"2": 2}
    for _, letters, _, shape, _ in given:
        if not _fits(letters, shape, sizes):
            shapes = ", ".join(f"{name} {tuple(shape)}" for name, _, _, shape, _ in given)
            raise ValueError(f"{operation}: {shapes} do not fit; give {form}")
    for name, _, kind, _, dtype in given:
        if kind == " int64":
            if dtype != torch.int64:
                raise ValueError(f"{operation}: {name} has dtype {dtype}; give torch.int64")
        elif dtype not in FLOATS and not (kind and dtype == torch.int8):
            raise ValueError(
                f"{operation}: {name} has dtype {dtype}; give fp16, bf16, fp32 or fp64{kind}"
            )
    dtypes = {name: dtype for name, _, kind, _, dtype in given if not kind}
    if one_dtype and len({*dtypes.values()}) > 1:
        words = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise ValueError(f"{operation}: dtypes are {words}; give one floating-point dtype")


_cached_check = functools.lru_cache(maxsize=4096)(_check)  # a check takes longer than a launch


def _parsed(form: str) -> list[tuple[str, tuple[str, ...], str]]:
    """The name, the letters and the kind of dtype of each operand of a form."""
    named = re.findall(r"(\w+) \(([^()]*)\)( int64| or int8)?", form)
    return [(name, tuple(re.findall("[^, ][^,]*", letters)), kind) for name, letters, kind in named]


# as torch.compiler.assume_constant_result does, which imports the compiler: two seconds
_parsed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _fits(letters: Sequence[str], shape: Sequence[Any], sizes: dict[str, Any]) -> bool:
    """Whether a shape fits its letters and the `sizes` of letters so far, which are extended."""
    if letters[:1] == ("...",):
        leading = len(shape) - len(letters) + 1
        if leading < 0:
            return False
        shape = (tuple(shape[:leading]), *shape[leading:])
    if len(shape) != len(letters):
        return False
    for letter, size in zip(letters, shape, strict=True):
        if letter.startswith(">= "):
            if size < sizes[letter[3:]]:
                return False
        elif sizes.setdefault(letter, size) != size or (letter in NEVER_EMPTY and size == 0):
            return False
    return True


def check_sampling_rule(temperature: float, top_k: int, top_p: float) -> float:
    """Raise ValueError unless the options of `sample_token` are in range.

    Return the temperature, limited to numbers by which fp32 can be divided: 1 if it is 0.
    """
    if not (0 <= temperature < math.inf and top_k >= 0 and 0 < top_p <= 1):  # false for NaN
        raise ValueError(
            f"sample_token: temperature is {temperature}, top_k {top_k} and top_p {top_p}; give a "
            "finite temperature >= 0, top_k >= 0 and 0 < top_p <= 1"
        )
    return min(max(temperature, torch.finfo(torch.float32).tiny), 1e36) if temperature else 1.0
