"""The machine: its devices, their dtypes, FLOP/s and memory."""

import contextlib
import ctypes
import re
import resource
import sys
from collections.abc import Iterator
from typing import Any

import torch

from . import UserError
from .config.model import ModelConfig

# dense bf16 tensor-core peaks in FLOP/s, from NVIDIA's data sheets; the first match counts
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,  # GH200 too
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "A10": 125e12,
    "L4": 121e12,
}


def choose_device(name: str) -> torch.device:
    """The device that --device names; auto: cuda, else mps, else cpu."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:(\d|[1-9]\d))?", name):
        raise UserError(f"--device {name} is not supported; use cuda, cuda:N, cpu or mps")
    device = torch.device(name)
    if device.type == "cuda":
        count, index = torch.cuda.device_count(), device.index or 0
        if index >= count:
            raise UserError(f"--device {name}: PyTorch finds {count} CUDA GPUs; use cuda:N or cpu")
        torch.cuda.set_device(index)  # streams, graphs and generators use the current device
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: PyTorch finds no Apple GPU; use --device cpu")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products that --dtype names; auto: the fastest that trains safely."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if bf16 else torch.float16
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16
    return torch.float32


def device_name(device: torch.device) -> str:
    """The model of a GPU, or the type of another device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type


def peak_flops(device: torch.device) -> float | None:
    """The bf16 FLOP/s of a GPU from PEAK_FLOPS, or None."""
    name = device_name(device)
    return next((peak for model, peak in PEAK_FLOPS.items() if model in name), None)


def flops_per_token(config: ModelConfig, parameters: int) -> float:
    """FLOPs of one token forward and backward (PaLM, appendix B): 6 N + 12 L C T."""
    positions = config.block_size * config.n_embd if config.position == "learned" else 0  # not in N
    seen = min(config.window or config.block_size, config.block_size)
    return 6 * (parameters - positions) + 12 * config.n_layer * config.n_embd * seen


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` was raised because GPU or main memory was exhausted, or would have been."""
    reasons = ("DefaultCPUAllocator", "Storage size calculation overflowed")
    classes = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, classes) or any(reason in str(error) for reason in reasons)


@contextlib.contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """A context in which exhausted memory is a UserError that ends with `advice`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(f"out of memory; {advice}") from None


def peak_memory(device: torch.device) -> int:
    """Bytes: the peak of PyTorch's GPU memory, or of the memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024  # Linux reports KiB


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, let glibc keep freed memory: page faults slow a training step by a quarter."""
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None) if device.type == "cpu" else None
    for parameter in (-1, -3) if mallopt else ():  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(parameter, 2**30)  # bytes from which on freed memory is returned


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
