"""What an instruction computes from registers: NumPy functions on arrays with one value per thread.

A register holds bits; `as_type` reads them as numbers and `as_bits` rounds and stores numbers.
`operation` gives an opcode's function, the types of its operands and the type of its result.

Rounding is that of the hardware: to nearest even, once. fma rounds the exact a b + c once: the sum
is computed in fp64 and rounded to odd there, which makes the rounding to fp32 right (Boldo and
Melquiond 2008). In fp64 fma is within 1 unit in the last place. The approximate functions (ex2,
rcp, rsqrt, sqrt, div.full) are correctly rounded here and within 2 units on a GPU.
"""

import functools
import operator
from collections.abc import Callable

import numpy as np

BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}  # by size in bytes
_NUMPY: dict[str, type] = {"f16": np.float16, "f32": np.float32, "f64": np.float64}
_NUMPY |= {f"{kind}{8 * size}": BITS[size] for size in BITS for kind in "ub"} | {"pred": np.bool_}
_NUMPY |= {"s8": np.int8, "s16": np.int16, "s32": np.int32, "s64": np.int64}


@functools.cache
def size_of(type_: str) -> int:
    """Bytes of a register of `type_`; f16x2, bf16x2 and f32x2 hold two numbers."""
    number, _, packed = type_.lstrip("bfsu").partition("x")
    return 1 if type_ == "pred" else int(number) // 8 * int(packed or 1)


def as_type(bits: np.ndarray, type_: str) -> np.ndarray:
    """Registers (threads,) as numbers: (threads,), or (2 threads,) if each holds two."""
    if type_.startswith("bf16"):
        return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if bits.itemsize > size_of(type_):  # the low bits of a wider register
        bits = bits.astype(BITS[size_of(type_)])
    return bits.view(_NUMPY[type_.partition("x")[0]])


def as_bits(value: np.ndarray, type_: str, size: int) -> np.ndarray:
    """Numbers of `type_` as registers of `size` bytes: rounded, or extended by their sign."""
    if type_.startswith("bf16"):
        single = np.ascontiguousarray(value, np.float32)
        if value.dtype == np.float64:
            single = _to_odd(single, value - single)
        bits = single.view(np.uint32)
        bits = np.where(np.isnan(single), 0x7FFF, (bits + (0x7FFF + (bits >> 16 & 1))) >> 16)
        return bits.astype(np.uint16).view(BITS[size])
    value = np.ascontiguousarray(value, _NUMPY[type_.partition("x")[0]])
    if size > size_of(type_):
        return value.astype(BITS[size])  # NumPy extends by the sign, too
    return value if type_ == "pred" else value.view(BITS[size])


@functools.cache
def immediate(text: str, type_: str) -> np.ndarray:
    """The bits (1,) of a constant: 7, -1, 0x1F, 0f3F800000 (fp32) or 0d3FF0000000000000 (fp64)."""
    is_float = text[:2] in ("0f", "0d")
    value = int(text[2:], 16) if is_float else int(text.rstrip("U"), 0)
    if type_ == "pred":
        return np.array([value != 0])
    return np.array([value % (1 << 8 * size_of(type_))], BITS[size_of(type_)])


# --- functions ------------------------------------------------------------------------------------


def _fma(a, b, c):
    if a.dtype == np.float64:
        return (a.astype(np.longdouble) * b + c).astype(np.float64)
    product = a.astype(np.float64) * b  # exact
    total = product + c
    is_halfway = total.view(np.uint64) & 0x1FFFFFFF == 0x10000000  # between two numbers of fp32
    if not is_halfway.any():
        return total
    part = total - product
    return _to_odd(total, (product - (total - part)) + (c - part))  # the error by Knuth's TwoSum


def _to_odd(rounded, error):
    """A result rounded to nearest, and the error of that -> the result rounded to odd."""
    even = rounded.view(BITS[rounded.itemsize]) % 2 == 0
    wrong = even & ((error > 0) | (error < 0))  # not for NaN
    if not wrong.any():
        return rounded
    towards = np.copysign(np.inf, error).astype(rounded.dtype)
    return np.where(wrong, np.nextafter(rounded, towards), rounded)


def _wide(x):
    """The same integers with twice the bits."""
    return x.astype(f"{x.dtype.kind}{2 * x.itemsize}" if x.itemsize < 8 else object)


def _multiply_high(a, b):
    return (_wide(a) * _wide(b) >> 8 * a.itemsize).astype(a.dtype)


def _quotient(a, b):
    if a.dtype.kind == "f":
        return a / b
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)) if a.dtype.kind == "i" else a // b


def _shift(shift, a, by):
    """By the number of bits or more, the result is 0 or the sign."""
    bits = 8 * a.itemsize
    by = np.minimum(by, bits - (a.dtype.kind == "i")).astype(a.dtype)
    return np.where(by < bits, shift(a, by % bits), 0).astype(a.dtype)


def _bit_field(a, start, length):
    bits = 8 * a.itemsize
    return (a << (bits - start - length).astype(a.dtype)) >> (bits - length).astype(a.dtype)


def _permute_bytes(a, b, selector):
    """Each of four hexadecimal digits selects a byte of b:a, or with 8 added its sign."""
    source = np.stack(np.broadcast_arrays(a, b), 1).view(np.uint8)  # (threads, 8)
    digits = np.broadcast_to(selector, a.shape)[:, None] >> np.arange(0, 16, 4, np.uint32)
    chosen = np.take_along_axis(source, (digits & 7).astype(np.int64), 1)
    signs = np.where(chosen & 0x80, 0xFF, 0)
    return np.where(digits & 8, signs, chosen).astype(np.uint8).view(np.uint32)[:, 0]


def _flush(x):
    """Replace subnormal numbers by 0 of the same sign (.ftz)."""
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(0, x), x).astype(x.dtype)


def _comparison(name: str, is_float: bool) -> Callable:
    """Of "geu" and other names that end in u, the result is true also if an operand is NaN."""
    if name in ("num", "nan"):
        return lambda a, b: (np.isnan(a) | np.isnan(b)) == (name == "nan")
    if name in _COMPARE and is_float and name == "ne":
        return lambda a, b: (a < b) | (a > b)
    if name in _COMPARE:
        return _COMPARE[name]
    return lambda a, b: _COMPARE[name[:-1]](a, b) | np.isnan(a) | np.isnan(b)


def _folded(function):
    """A function of two operands, applied to two or three."""
    return lambda *given: functools.reduce(function, given)


_COMPARE: dict[str, Callable] = {"eq": np.equal, "ne": np.not_equal, "lt": np.less}
_COMPARE |= {"le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
_FUNCTIONS: dict[str, Callable] = dict.fromkeys(("mov", "cvt", "cvta"), lambda a: a)
_FUNCTIONS |= {"neg": np.negative, "abs": np.abs, "not": np.invert, "sqrt": np.sqrt}
_FUNCTIONS |= {"rcp": np.reciprocal, "rsqrt": lambda a: 1 / np.sqrt(a, dtype=np.float64)}
# NumPy's own in fp32 are off by up to 3 units
_FUNCTIONS |= {"ex2": functools.partial(np.exp2, dtype=np.float64)}
_FUNCTIONS |= {"lg2": functools.partial(np.log2, dtype=np.float64)}
_FUNCTIONS |= {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": _quotient}
_FUNCTIONS |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "fma": _fma}
_FUNCTIONS |= {"rem": lambda a, b: a - b * _quotient(a, b), "prmt": _permute_bytes}
_FUNCTIONS |= {"selp": lambda a, b, p: np.where(p, a, b), "bfe": _bit_field}
_FUNCTIONS |= {"shl": functools.partial(_shift, operator.lshift)}
_FUNCTIONS |= {"shr": functools.partial(_shift, operator.rshift)}
_FUNCTIONS |= {"min": _folded(np.fmin), "max": _folded(np.fmax)}  # of NaN and a number: the number


@functools.cache
def operation(opcode: tuple[str, ...]) -> tuple[Callable, list[str], str] | None:
    """The function of an opcode, the types of its operands and of its result; None if unknown."""
    name, *modifiers, type_ = opcode
    function, types, result = _FUNCTIONS.get(name), [type_] * 3, type_
    if name == "cvt":
        result = modifiers.pop()
        if result.endswith("x2"):
            function = lambda high, low: np.stack((low, high), 1).ravel()  # noqa: E731
        if modifiers == ["rni"]:
            function = np.rint
        elif modifiers not in ([], ["rn"]):
            return None
    elif name == "setp":
        function, result = _comparison(modifiers[0], "f" in type_), "pred"
    elif name == "selp":
        types[2] = "pred"
    elif name in ("shl", "shr", "bfe"):
        types[1:] = ["u32", "u32"]
    elif name in ("mul", "mad") and modifiers[:1] in (["lo"], ["hi"], ["wide"]):
        multiply = {"lo": np.multiply, "hi": _multiply_high}.get(modifiers[0])
        if multiply is None:
            result = f"{type_[0]}{16 * size_of(type_)}"
            multiply = lambda a, b: _wide(a) * _wide(b)  # noqa: E731
        types[2] = result
        function = multiply if name == "mul" else lambda a, b, c: multiply(a, b) + c
    elif name in ("add", "sub", "fma") and modifiers[-1:] == ["f32"]:  # and 16-bit operands
        types[2 if name == "fma" else 1] = result = "f32"
    elif name in ("min", "max") and "NaN" in modifiers:
        function = _folded(np.minimum if name == "min" else np.maximum)
    elif "relu" in modifiers:
        function = lambda a, b: np.maximum(np.maximum(a, b), 0)  # noqa: E731
    elif opcode == ("rcp", "approx", "ftz", "f64"):  # computes the upper half of the bits
        function = lambda a: ((1 / a).view(np.uint64) >> 32 << 32).view(np.float64)  # noqa: E731
    if function and "ftz" in modifiers and type_ == "f32":
        exact = function
        function = lambda *given: _flush(np.float32(exact(*map(_flush, given))))  # noqa: E731
    return function and (function, types, result)
