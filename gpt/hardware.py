"""What the machine is: its device, the dtype it is best at, and how many FLOPs it can do."""

import functools
import os
import time

import torch

from gpt import UserError
from gpt.config.model import ModelConfig

# Dense bf16 tensor-core peaks in FLOP/s, from the vendor's data sheets.
PEAK_FLOPS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
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
    """The device that `--device` names; auto is cuda, then mps, then cpu."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is no device; choose cuda, cuda:N, cpu or mps") from None
    if device.type not in ("cuda", "cpu", "mps"):
        raise UserError(f"--device {name} is not supported; choose cuda, cuda:N, cpu or mps")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise UserError(f"--device {name}: PyTorch sees no CUDA card here; use --device cpu")
        if (device.index or 0) >= count:
            raise UserError(f"--device {name}: there are only {count} cards, cuda:0 ...")
        torch.cuda.set_device(device.index or 0)  # where streams, graphs and generators are made
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: PyTorch sees no Apple GPU here; use --device cpu")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: that of `--dtype`; auto is the fastest that trains safely."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if bf16 else torch.float16
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16
    return torch.float32


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type


@functools.cache
def peak_flops(device: torch.device) -> float | None:
    """The bf16 peak of a CUDA card: tabled or, of a card that is not, measured now; of others None.

    A utilisation is a share of it.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    tabled = next((peak for card, peak in PEAK_FLOPS.items() if card in name), None)
    return tabled or product_rate(device)


def product_rate(device: torch.device, size: int = 8192, products: int = 10) -> float:
    """FLOP/s of large bf16 matrix products."""
    a, b = torch.randn(2, size, size, device=device).bfloat16()
    out = a @ b  # the first one loads the kernel
    synchronise(device)
    began = time.perf_counter()
    for _ in range(products):
        torch.mm(a, b, out=out)
    synchronise(device)
    return products * 2 * size**3 / (time.perf_counter() - began)


def flops_per_token(config: ModelConfig, parameters: int) -> float:
    """Forward and backward FLOPs of one token (PaLM, appendix B): 6 N + 12 L C T.

    With a window, T are the tokens that it holds.
    """
    positions = config.block_size * config.n_embd if config.position == "learned" else 0
    seen = min(config.window or config.block_size, config.block_size)
    attention = 12 * config.n_layer * config.n_embd * seen
    return 6 * (parameters - positions) + attention


def physical_memory() -> int:
    """Of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch has asked a card, or this machine, for more than there is."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def peak_memory(device: torch.device) -> int:
    """The largest memory in bytes so far: of the card, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024  # Linux counts in KiB


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
