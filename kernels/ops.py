"""The table of operations, and the error raised where its Triton implementation cannot run."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.optim import Optimizer


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

    A NamedTuple rather than a module, because `copy.deepcopy` fails on a module. In the shapes
    below B is the batch, T time, C channels, V the vocabulary, H heads, Hkv heads of keys and
    values, and D the size of a head. Options follow the `*` and are passed by name.

    Operations with dropout take its probability `dropout_p` and a `seed`, an int64 tensor () on the
    device, which is drawn from the device's default generator when it is None. Elements that are
    kept are scaled by 1 / (1 - dropout_p).
    """

    embedding: Callable[..., Tensor]
    """`(tokens (B, T) int64, token_table (V, C), position_table (>= T, C) = None)` -> (B, T, C)

    The rows of the token table, plus the first T rows of the position table if there is one.
    """

    layer_norm: Callable[..., Tensor]
    """`(x (..., C), weight (C,), bias (C,) = None, *, eps=1e-5)` -> (..., C)"""

    rms_norm: Callable[..., Tensor]
    """`(x (..., C), weight (C,) = None, *, eps=1e-5)` -> (..., C)"""

    add_layer_norm: Callable[..., tuple[Tensor, Tensor]]
    """`(residual (..., C), x (..., C), weight (C,), bias (C,) = None, *, x_bias (C,) = None,
    eps=1e-5, dropout_p=0.0, seed=None)` -> total (..., C), y (..., C)

    The residual sum and its LayerNorm: total = residual + dropout(x + x_bias), y =
    layer_norm(total).
    """

    attention: Callable[..., Tensor]
    """`(q (B, H, Tq, D), k (B, Hkv, Tk, D), v (B, Hkv, Tk, D), *, causal=True, window=0,
    dropout_p=0.0, scale=None, seed=None)` -> (B, H, Tq, D)

    softmax(scale q k^T) v with dropout on the weights. `scale` defaults to 1 / sqrt(D). With
    `causal`, row t sees the keys 0 to t, and with a window W > 0 only the last W of them. H is a
    multiple of Hkv; query head h reads the keys and values of head h // (H / Hkv).
    """

    attention_qkv: Callable[..., Tensor]
    """`(qkv (B, T, (H + 2 Hkv) D), n_head, *, n_kv_head=None, causal=True, window=0, qk_norm=False,
    eps=1e-5, cos (>= T, D) = None, sin (>= T, D) = None, dropout_p=0.0, scale=None, seed=None)`
    -> (B, T, H D)

    Attention of a packed projection [query | key | value]. n_head is H, and n_kv_head is Hkv, by
    default H. With `qk_norm`, queries and keys are RMS-normalised over D. With `cos` and `sin`,
    each query and key x is then rotated to x cos + roll(x, D / 2) sin.
    """

    feed_forward: Callable[..., Tensor]
    """`(x (..., C), w1 (F, C), b1 (F,) or None, w2 (C, F), b2 (C,) or None, *, activation="gelu",
    dropout_p=0.0, seed=None)` -> (..., C)

    dropout(f(x w1^T + b1) w2^T + b2), where f is relu, gelu, gelu_tanh or relu_squared.
    """

    swiglu: Callable[..., Tensor]
    """`(gate (..., F), up (..., F))` or `(gate and up (..., 2 F))` -> (..., F): silu(gate) up"""

    geglu: Callable[..., Tensor]
    """The same with gelu, `*, approximate="none"` or "tanh"."""

    cross_entropy: Callable[..., Tensor]
    """`(logits (..., V), targets (...) int64, *, ignore_index=-100)` -> ()

    The mean over the targets that are not `ignore_index`; 0 if there is no such target.
    """

    linear_cross_entropy: Callable[..., Tensor]
    """`(x (..., C), weight (V, C), bias (V,) or None, targets (...) int64, *, ignore_index=-100)`
    -> ()

    The cross entropy of the logits x weight^T + bias, which are never stored all at once.
    """

    adamw: Callable[..., Optimizer]
    """`(params, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False,
    maximize=False)` -> an optimizer with the interface of `torch.optim.AdamW`

    `params` are tensors, (name, tensor) pairs or groups. Triton's has no `amsgrad`.
    """

    decode_linear: Callable[..., Tensor]
    """`(x (B, K), weight (N, K), bias (N,) = None, *, scale (N,) = None, norm=None,
    norm_weight (K,) = None, norm_bias (K,) = None, eps=1e-5, activation=None,
    residual (B, N) = None)` -> (B, N)

    residual + f(scale * (weight norm(x)) + bias) for one token of each row, without gradients.
    `norm` is "layer_norm", "rms_norm" or None. An int8 weight has a `scale`, other weights have
    none.
    """

    decode_attention: Callable[..., Tensor]
    """`(qkv (B, (H + 2 Hkv) D), cache (2, B, Hkv, T, D), position (B,) int64, *, window=0,
    qk_norm=False, eps=1e-5, cos (T, D) = None, sin (T, D) = None)` -> (B, H D)

    Attention of one new token of each row, without gradients. The new key and value are written to
    the cache at `position`, and the query sees all positions up to it, or with a window W > 0 the
    last W. Other options are those of `attention_qkv`.
    """

    sample_token: Callable[..., Tensor]
    """`(logits (B, V), *, temperature=1.0, top_k=0, top_p=1.0, seed=None)` -> tokens (B,) int64

    Samples from softmax(logits / temperature); the result is a function of logits and seed.
    Temperature 0 selects the most likely token. A token is kept if fewer than `top_k` tokens are
    more likely (0 disables this) and if these have a total probability below `top_p`, of the
    probabilities that top_k leaves, renormalised.
    """
