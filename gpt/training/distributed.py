"""Several processes, one GPU each, as `torchrun` starts them: process group and collectives.

Without torchrun there is one rank, and every function here is the identity or a constant.
"""

import contextlib
import gc
import inspect
import io
import os
import re
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from .. import UserError


def init_process_group(device_name: str) -> str:
    """Join the process group if torchrun started this process; return this rank's device name.

    torchrun sets RANK, LOCAL_RANK and WORLD_SIZE. GPUs communicate by NCCL, CPUs by Gloo.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return device_name
    size, _ = _variable("WORLD_SIZE", 2, 1 << 16), _variable("MASTER_PORT", 1, 1 << 16)
    _, local_rank = _variable("RANK", 0, size), _variable("LOCAL_RANK", 0, size)
    on_gpu = device_name.startswith("cuda") or (device_name == "auto" and torch.cuda.is_available())
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started at least {local_rank + 1} ranks on this machine, which has "
                f"{torch.cuda.device_count()} GPUs; set --nproc_per_node to the number of GPUs"
            )
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"the ranks cannot communicate: {reason}; check MASTER_ADDR") from None
    return f"cuda:{local_rank}" if on_gpu else "cpu"


def _variable(name: str, first: int, end: int) -> int:
    """An environment variable of torchrun; UserError unless it is a number in [first, end)."""
    value = os.environ.get(name, "")
    number = int(value) if re.fullmatch("[0-9]{1,9}", value) else -1
    if not first <= number < end:
        problem = f"the environment variable {name} is {value!r}, which no rank of several has"
        raise UserError(f"{problem}; start them by torchrun, or unset WORLD_SIZE")
    return number


def destroy_process_group() -> None:
    if dist.is_initialized():
        gc.collect()  # a dead model of DDP refers to the group, and must not outlive it
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, which prints and writes files."""
    return rank() == 0


def print_on_main_only() -> contextlib.AbstractContextManager:
    """A context in which the other ranks' prints are discarded."""
    return contextlib.nullcontext() if is_main() else contextlib.redirect_stdout(io.StringIO())


def all_reduce_sum(value: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks."""
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
    return value


def all_reduce_mean(value: torch.Tensor) -> torch.Tensor:
    """The mean over all ranks."""
    return all_reduce_sum(value) / world_size()


def any_rank(*flags: bool) -> list[bool]:
    """Of each flag, whether it is true on any rank."""
    return [count > 0 for count in all_reduce_sum(torch.tensor(flags).float()).tolist()]


def all_gather(value: torch.Tensor) -> list[torch.Tensor]:
    """The values of all ranks, in rank order; each is a tensor on the CPU."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def data_parallel(model: nn.Module) -> nn.Module:
    """The model with gradients averaged over all ranks (DDP)."""
    if not dist.is_initialized():
        return model
    # buffers are constants, and a rank that evaluates must not wait for the others to send them
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    # gradients as views of the buckets: none is copied, and their addresses do not change
    options: dict[str, Any] = {name: False}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **options)


def no_sync(model: nn.Module) -> contextlib.AbstractContextManager:
    """A context for all passes of a step but the last: gradients are not exchanged."""
    return cast(Any, model).no_sync() if dist.is_initialized() else contextlib.nullcontext()
