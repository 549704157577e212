"""bf16 in Triton's interpreter, rounded and multiplied as a GPU does it.

The interpreter keeps bf16 as uint16: its casts truncate, and its dot multiplies the bits as
integers. Where kernels are interpreted, `kernels.launch` puts this right. Arithmetic directly on
bf16 stays wrong, so kernels compute in their ACC, as they should anyway.
"""

import numpy as np
from triton.language import bfloat16, float32
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_cast_impl, _create_dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot


def install() -> None:
    """For every kernel that this process interprets."""
    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = _cast, _dot


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


def _dot(builder, a, b, *arguments):
    return _create_dot(builder, _widen(a), _widen(b), *arguments)
