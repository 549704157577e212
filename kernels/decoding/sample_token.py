"""A token of each row, drawn from softmax(logits / temperature) where top-k and top-p leave it.

With z = logits / temperature and Gumbel noise g = -log(-log(1 - u)), u uniform in (0, 1),

    token = argmax over kept v of z[v] + g[v]        kept[v] = fewer than top_k tokens are likelier
                                                               and those have less than top_p

is a draw from softmax(z) over the kept tokens (Maddison et al. 2014, "A* sampling"). The noise is a
function of (seed, row, v) alone, so the token is one of (logits, seed): the host has no part in it,
and a CUDA graph that moves the seed on draws anew. Temperature 0 is the argmax without noise.

Decisions:
- Nobody sorts. The best token of all is kept nearly always, and that is seen by counting and
  summing what is likelier. If it is not, neither is any token below it, since only likelier ones
  are kept: the search goes on among those above, and ends at the latest with the likeliest. What
  is found is the same token that sorting first would have given.
- A program has a row, and reads it from the L2 two times: once for the best, once for the count.
- The seed is a pointer, and its noise comes from Philox, four tokens to a call.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch, next_power_of_2, tile
from kernels.common.philox import ROUNDS


@triton.jit
def sample_token_kernel(
    logits_ptr,  # (B, V)
    seed_ptr,  # ()
    token_ptr,  # (B,)
    V,
    stride,
    temperature,
    top_k,
    top_p,
    GREEDY: tl.constexpr,
    RESTRICTED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * stride
    seed = tl.load(seed_ptr)
    token = tl.zeros((), tl.int32)
    pivot = tl.full((), float("-inf"), tl.float32)  # tokens up to here are out
    likeliest = tl.full((COLUMNS,), float("-inf"), tl.float32)
    searching = tl.full((), 1, tl.int32)
    while searching > 0:
        best = tl.full((COLUMNS,), float("-inf"), tl.float32)
        best_token = tl.zeros((COLUMNS,), tl.int32)
        for first in range(0, V, COLUMNS):
            v = first + tl.arange(0, COLUMNS)
            z = _scaled(logits_ptr, v, V, temperature)
            likeliest = tl.maximum(likeliest, z)
            noisy = z if GREEDY else z + _gumbel(seed, row, first, COLUMNS)
            better = (noisy > best) & (z > pivot)
            best = tl.where(better, noisy, best)
            best_token = tl.where(better, v, best_token)
        found = tl.max(best, 0)
        if found > float("-inf"):
            token = tl.min(tl.where(best == found, best_token, V), 0)
        searching = tl.zeros((), tl.int32)
        if RESTRICTED:
            pivot = tl.load(logits_ptr + token).to(tl.float32) / temperature
            peak = tl.max(likeliest, 0)
            count = tl.zeros((COLUMNS,), tl.int32)  # of likelier tokens
            mass = tl.zeros((COLUMNS,), tl.float32)  # and what they have
            total = tl.zeros((COLUMNS,), tl.float32)
            for first in range(0, V, COLUMNS):
                z = _scaled(logits_ptr, first + tl.arange(0, COLUMNS), V, temperature)
                p = tl.exp(z - peak)
                count += (z > pivot).to(tl.int32)
                mass += tl.where(z > pivot, p, 0)
                total += p
            out = (tl.sum(count, 0) >= top_k) | (tl.sum(mass, 0) >= top_p * tl.sum(total, 0))
            searching = (out & (found > float("-inf"))).to(tl.int32)
    tl.store(token_ptr + row, token)


@triton.jit
def _scaled(logits_ptr, v, V, temperature):
    """z of the tokens v, -inf beyond the vocabulary."""
    x = tl.load(logits_ptr + v, v < V, other=float("-inf")).to(tl.float32)
    return x / temperature


@triton.jit
def _gumbel(seed, row, first, COLUMNS: tl.constexpr):
    """Noise (COLUMNS,) of the tokens first + [0, COLUMNS); both are multiples of 4."""
    cell = first // 4 + tl.arange(0, COLUMNS // 4)
    zero = tl.zeros((), tl.uint32)
    a, b, c, d = tl.philox(seed, cell, tl.cast(row, tl.uint32), zero, zero, ROUNDS)
    words = tl.join(tl.join(a, c), tl.join(b, d))  # (COLUMNS / 4, 2, 2): a, b, c, d of each cell
    u = (tl.reshape(words, (COLUMNS,)).to(tl.float32) + 0.5) * 2.0**-32
    # -log(1 - u), whose small values win: there the difference would lose what tells them apart
    e = tl.where(u < 0.015625, u * (1 + u * (0.5 + u * (1 / 3))), -tl.log(1 - u))
    return -tl.log(e)


def sample_token(
    logits,  # (B, V)
    *,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    seed=None,  # () int64
):
    """Tokens (B,) int64; what the options mean is said in `kernels.Ops`."""
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(
            f"sample_token takes logits (B, V) of at least one token, not {tuple(logits.shape)}"
        )
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            "sample_token takes a temperature and a top_k of at least 0 and a top_p above 0 and at most 1, "
            f"not {temperature}, {top_k} and {top_p}"
        )
    B, V = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    if seed is None:
        seed = torch.randint(2**63 - 1, (), dtype=torch.int64, device=logits.device)
    greedy = temperature == 0
    token = torch.empty(B, dtype=torch.int64, device=logits.device)
    elements, per_warp = tile("sample_token", logits.device)
    COLUMNS = min(max(next_power_of_2(V), 16), elements)
    launch(
        sample_token_kernel,
        (B,),
        *(logits, seed, token),
        *(V, logits.stride(0), 1.0 if greedy else float(temperature), top_k or V, float(top_p)),
        GREEDY=greedy,
        RESTRICTED=not greedy and (0 < top_k < V or top_p < 1),
        COLUMNS=COLUMNS,
        num_warps=max(COLUMNS // per_warp, 1),
    )
    return token
