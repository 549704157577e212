"""Several processes, one card each, as `torchrun` starts them: who I am, what all know together.

Without torchrun there is one rank, and everything here does nothing.
"""

import contextlib
import gc
import inspect
import io
import os

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from gpt import UserError
from gpt.models import residual

# FSDP and its tensors are imported where they are needed: a second that one rank alone has not to
# wait for


def join(device_name: str) -> str:
    """Join the other ranks, if there are any; the name of this rank's device.

    torchrun tells by RANK, LOCAL_RANK and WORLD_SIZE. NCCL exchanges what is on cards, gloo what is
    on CPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device_name
    on_cards = device_name.startswith("cuda") or (
        device_name == "auto" and torch.cuda.is_available()
    )
    local = int(os.environ["LOCAL_RANK"])
    if on_cards:
        if local >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started {local + 1} ranks or more on this machine, which has "
                f"{torch.cuda.device_count()} cards; give --nproc_per_node as many as there are"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_cards else "gloo")
    return f"cuda:{local}" if on_cards else "cpu"


def leave() -> None:
    if dist.is_initialized():
        gc.collect()  # what is in shards holds on to the group, and must not outlive it
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this rank is the one that prints and writes."""
    return rank() == 0


def main_speaks():
    """A context in which the lines of all ranks but one go nowhere."""
    return contextlib.nullcontext() if is_main() else contextlib.redirect_stdout(io.StringIO())


def wait() -> None:
    """Until all ranks have come here."""
    if dist.is_initialized():
        dist.barrier()


def mean(value: torch.Tensor) -> torch.Tensor:
    """The mean over all ranks."""
    return total(value) / world()


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks."""
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
    return value


def total_on(device: torch.device, value: torch.Tensor) -> list[float]:
    """The sums over all ranks of numbers that lie on the CPU; `device` is where ranks talk."""
    return total(value.to(device)).tolist() if dist.is_initialized() else value.tolist()


def any_rank(flag: bool) -> bool:
    """Whether it is so on any rank."""
    return total(torch.tensor(float(flag))).item() > 0


def gather(value: torch.Tensor) -> list[torch.Tensor]:
    """The values of all ranks, in their order; a tensor on the CPU."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * world()
    dist.all_gather_object(values, value)
    return values


def parallel(model: nn.Module) -> nn.Module:
    """The model whose gradients are means over all ranks."""
    if not dist.is_initialized() or _is_sharded(model):
        return model
    # buffers are constants, and a rank that evaluates must not wait for the others to send them
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    # gradients as views: none is copied, and where they lie does not change
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **{name: False})


def shard(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move each rank's share of every weight to its device; a block is whole while it computes.

    By FSDP2. Optimizers are made after this: weights, gradients and their state are then DTensors
    in fp32. Weights are gathered in `dtype`, that of matrix products; gradients are summed in fp32.
    """
    if dist.is_initialized():
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(device.type, (world(),))
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for block in model.blocks:
            # a bias that is added in the next block would be gone by then
            block.register_forward_hook(lambda block, inputs, stream: residual.total(stream))
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def _is_sharded(model: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


@contextlib.contextmanager
def without_exchange(model: nn.Module):
    """For the passes of a step before the last: gradients stay with their rank."""
    if not dist.is_initialized():
        yield
    elif _is_sharded(model):
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)
    else:
        with model.no_sync():
            yield


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """On every rank all of a tensor, the shards of which lie with the ranks."""
    return tensor.full_tensor() if _is_share(tensor) else tensor


def _is_share(tensor: torch.Tensor) -> bool:
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole_on_main(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, one after the other, in the memory of the main rank's host; elsewhere as meta."""
    place = "cpu" if is_main() else "meta"
    return {
        name: whole(tensor).to(place) if _is_share(tensor) else tensor
        for name, tensor in tensors.items()
    }


def shared_like(tensor: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """A tensor that every rank has, as shards where `pattern` is."""
    if not _is_share(pattern):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(pattern.device), pattern.device_mesh, pattern.placements)
