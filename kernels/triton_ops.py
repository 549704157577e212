"""The Triton operations under the names of `kernels.Ops`."""

from kernels.attention.attention import attention, attention_qkv
from kernels.decoding.decode_attention import decode_attention
from kernels.decoding.decode_linear import decode_linear
from kernels.decoding.sample_token import sample_token
from kernels.embedding import embedding
from kernels.losses.cross_entropy import cross_entropy
from kernels.losses.linear_cross_entropy import linear_cross_entropy
from kernels.matmul.feed_forward import feed_forward
from kernels.norms.add_layer_norm import add_layer_norm
from kernels.norms.layer_norm import layer_norm, rms_norm
from kernels.ops import Ops
from kernels.optimizer.adamw import AdamW

OPS = Ops(
    *(embedding, layer_norm, rms_norm, add_layer_norm, attention, attention_qkv, feed_forward),
    *(cross_entropy, linear_cross_entropy, AdamW, decode_linear, decode_attention, sample_token),
)
