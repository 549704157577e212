"""One check of the shapes and dtypes of operands, with one wording, for every operation."""

import functools
import re
from collections.abc import Sequence
from typing import Any

import torch

NEVER_EMPTY = ("C", "D", "F", "K", "V")  # channels, features, vocabulary


def check_operands(
    operation: str, form: str, *operands: torch.Tensor | None, one_dtype: bool = False
) -> None:
    """Raise ValueError unless the operands, except those that are None, have the given form.

    `form` is the name and shape of each operand, as in "x (..., C), targets (...) int64". A letter
    is one size everywhere, "..." any dimensions that are the same everywhere, and ">= T" at least
    T. With `one_dtype`, operands that are not int64 must share a floating-point dtype.
    """
    described = tuple(None if x is None else (x.shape, x.dtype) for x in operands)
    _check(operation, form, described, one_dtype)


@functools.lru_cache(maxsize=4096)  # a check takes longer than a launch
def _check(operation: str, form: str, described: tuple, one_dtype: bool) -> None:
    named = re.findall(r"(\w+) \(([^()]*)\)( int64)?", form)
    given = [(*name, *x) for name, x in zip(named, described, strict=True) if x is not None]
    sizes: dict[str, Any] = {"2": 2}
    if not all(_fits(letters, shape, sizes) for _, letters, _, shape, _ in given):
        shapes = ", ".join(f"{name} {tuple(shape)}" for name, _, _, shape, _ in given)
        raise ValueError(f"{operation}: {shapes} do not fit; give {form}")
    for name, _, is_int64, _, dtype in given:
        if is_int64 and dtype != torch.int64:
            raise ValueError(f"{operation}: {name} has dtype {dtype}; give torch.int64")
    dtypes = {name: dtype for name, _, is_int64, _, dtype in given if not is_int64}
    if one_dtype and not (len({*dtypes.values()}) == 1 and given[0][-1].is_floating_point):
        words = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise ValueError(f"{operation}: dtypes are {words}; give one floating-point dtype")


def _fits(letters: str, shape: Sequence[Any], sizes: dict[str, Any]) -> bool:
    """Whether a shape fits its letters and the `sizes` of letters so far, which are extended."""
    named = re.findall(r"[^, ][^,]*", letters)
    if named[0] == "...":
        leading = len(shape) - len(named) + 1
        if leading < 0:
            return False
        shape = (shape[:leading], *shape[leading:])
    if len(shape) != len(named):
        return False
    for letter, size in zip(named, shape, strict=True):
        if letter.startswith(">= "):
            if size < sizes[letter[3:]]:
                return False
        elif sizes.setdefault(letter, size) != size or (size == 0 and letter in NEVER_EMPTY):
            return False
    return True
