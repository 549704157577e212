"""The Triton operations under the names of `kernels.Ops`."""

from kernels import Ops
from kernels.adamw import AdamW
from kernels.add_layer_norm import add_layer_norm
from kernels.attention import attention, attention_qkv
from kernels.attention_step import attention_step
from kernels.cross_entropy import cross_entropy
from kernels.draw import draw
from kernels.embedding import embedding
from kernels.feed_forward import feed_forward
from kernels.layer_norm import layer_norm, rms_norm
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.linear_step import linear_step

OPS = Ops(
    layer_norm=layer_norm,
    rms_norm=rms_norm,
    add_layer_norm=add_layer_norm,
    attention=attention,
    attention_qkv=attention_qkv,
    feed_forward=feed_forward,
    embedding=embedding,
    cross_entropy=cross_entropy,
    linear_cross_entropy=linear_cross_entropy,
    adamw=AdamW,
    linear_step=linear_step,
    attention_step=attention_step,
    draw=draw,
)
