"""Corrections to Triton's interpreter: bf16 and products are as on a GPU, and calls are faster.

The interpreter stores bf16 as uint16: its casts truncate, and its dot multiplies the bits as
integers. `kernels.common.launch` installs the corrections where kernels are interpreted. Arithmetic
directly on bf16 stays wrong, so kernels compute in their ACC, as they should anyway. A dot of fp32
is rounded from fp64: the order of NumPy's sums depends on the CPU and on the shape of a tile.

For every call of a function the interpreter searches all of `triton.language` for builtins to
replace, and for every operation it builds a table of NumPy's dtypes: a quarter of its time. Both
are cached here.
"""

import functools
import inspect

import numpy as np
from triton.language import bfloat16, core, float32
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_ADDRESS = np.dtype(np.uint64)
_numpy_dtype_of = functools.cache(interpreter._get_np_dtype)
_cast_impl, _create_dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot


def install() -> None:
    """Apply the corrections to every kernel that this process interprets."""
    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = _cast, _dot
    interpreter._patch_builtin = _patch_builtin
    interpreter._get_np_dtype = _numpy_dtype


def _widen(handle):
    if handle.dtype.scalar != bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), float32)


def _cast(builder, source, to):
    if source.dtype.scalar == to.scalar:
        return source
    if to.scalar != bfloat16:
        return _cast_impl(builder, _widen(source), to)
    bits = _cast_impl(builder, source, float32).data.view(np.uint32)
    nearest_even = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    quiet_nan = bits >> 16 | 0x0040
    is_nan = bits & 0x7FFFFFFF > 0x7F800000
    return TensorHandle(np.where(is_nan, quiet_nan, nearest_even).astype(np.uint16), bfloat16)


def _dot(builder, a, b, d, *arguments):
    if a.dtype.scalar != float32 or d.dtype.scalar != float32:
        return _create_dot(builder, _widen(a), _widen(b), d, *arguments)
    with np.errstate(over="ignore"):  # infinite, as in fp32
        product = np.matmul(a.data, b.data, dtype=np.float64).astype(np.float32)
        return TensorHandle(product + d.data, float32)


def _patch_builtin(package, builder, scope):
    names = _builtins(package)
    if not names or not core.is_builtin(getattr(package, names[0])):
        return  # the calling function has replaced all of them
    for name in names:
        interpreter._patch_attr(package, name, getattr(package, name), builder, scope)


@functools.cache
def _builtins(package) -> list[str]:
    return [name for name, member in inspect.getmembers(package) if core.is_builtin(member)]


def _numpy_dtype(dtype):
    is_pointer = isinstance(dtype.scalar, core.pointer_type)
    return _ADDRESS if is_pointer else _numpy_dtype_of(dtype.scalar)
