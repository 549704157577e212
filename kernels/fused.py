"""The Triton operations under the names of `kernels.Ops`.

An operation that is not written in Triton yet is PyTorch's own, and `kernels.serving` says so.
"""

from kernels import native
from kernels.add_layer_norm import add_layer_norm
from kernels.attention import attention, attention_qkv
from kernels.layer_norm import layer_norm, rms_norm

OPS = native.OPS._replace(
    layer_norm=layer_norm,
    rms_norm=rms_norm,
    add_layer_norm=add_layer_norm,
    attention=attention,
    attention_qkv=attention_qkv,
)
