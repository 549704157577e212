"""The dtypes that every operation chooses in the same way: accumulators, and those of autocast."""

import torch
import triton.language as tl


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values of `dtype` are computed and added up: fp32, or fp64 for fp64.

    Statistics and partial sums are stored in it, so that results are rounded only once.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def triton_accumulator(dtype: torch.dtype) -> tl.dtype:
    """`accumulator(dtype)` as Triton names it: the constexpr ACC of a kernel."""
    return tl.float64 if accumulator(dtype) == torch.float64 else tl.float32


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype to which autocast casts x for a matrix product, or None if it leaves x as it is.

    That is the case if autocast is disabled, and always for fp64.
    """
    device = x.device.type
    if device not in ("cpu", "cuda") or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
