"""The table of operations, and the error raised where its Triton implementation cannot run."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from .key_ranges import KeyRanges


class Unavailable(RuntimeError):
    """The Triton kernels cannot run here; the message gives the reason and a remedy."""

    def __init__(self, reason: str):
        super().__init__(
            f"the Triton kernels cannot run here: {reason}; use PyTorch's operations "
            '(--kernels torch, or kernels.load("torch")), or set TRITON_INTERPRET=1 before Python '
            "starts to run the kernels slowly in the interpreter"
        )


class Ops(NamedTuple):
    """One function per operation, so that a model takes its implementation as an argument.

    Both tables have the signatures that `kernels.embedding`, `kernels.layer_norm`, ... document. A
    NamedTuple rather than a module, because `copy.deepcopy` fails on a module.
    """

    embedding: Callable[..., Tensor]
    layer_norm: Callable[..., Tensor]
    rms_norm: Callable[..., Tensor]
    add_layer_norm: Callable[..., tuple[Tensor, Tensor]]
    attention: Callable[..., Tensor]
    attention_qkv: Callable[..., Tensor]
    feed_forward: Callable[..., Tensor]
    cross_entropy: Callable[..., Tensor]
    linear_cross_entropy: Callable[..., Tensor]
    adamw: Callable[..., Optimizer]
    decode_linear: Callable[..., Tensor]
    decode_attention: Callable[..., Tensor]
    sample_token: Callable[..., Tensor]

    @staticmethod
    def document_ranges(document_ids: Tensor) -> KeyRanges:
        """The `ranges` of attention within documents, runs of equal ids (B, T)."""
        return KeyRanges.of_documents(document_ids)
