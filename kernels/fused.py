"""The Triton operations under the names of `kernels.Ops`.

An operation that is not written in Triton yet is PyTorch's own, and `kernels.serving` says so.
"""

from kernels import native
from kernels.attention import attention, attention_qkv

OPS = native.OPS._replace(
    attention=attention,
    attention_qkv=attention_qkv,
)
