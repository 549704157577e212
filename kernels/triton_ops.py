"""The Triton operations under the names of `kernels.Ops`."""

from .decoding.decode_attention import decode_attention
from .decoding.decode_linear import decode_linear
from .decoding.sample_token import sample_token
from .flash_attention.attention import attention, attention_qkv
from .losses.cross_entropy import cross_entropy
from .losses.linear_cross_entropy import linear_cross_entropy
from .matmul.feed_forward import feed_forward
from .norms.add_layer_norm import add_layer_norm
from .norms.layer_norm import layer_norm, rms_norm
from .ops import Ops
from .optimizer.adamw import AdamW
from .token_embedding import embedding

OPS = Ops(
    *(embedding, layer_norm, rms_norm, add_layer_norm, attention, attention_qkv, feed_forward),
    *(cross_entropy, linear_cross_entropy, AdamW),
    *(decode_linear, decode_attention, sample_token),
)
