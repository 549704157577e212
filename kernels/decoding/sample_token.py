"""Sampling a token of each row from softmax(logits / temperature) restricted by top-k and top-p.

With z = logits / temperature and Gumbel noise g = -log(-log(1 - u)), u uniform in (0, 1),

    token = argmax over kept v of z[v] + g[v]

is a sample from softmax(z) over the kept tokens (Maddison et al. 2014, "A* sampling"): those for
which fewer than top_k tokens are more likely, with a total probability below top_p. The noise is a
function of (seed, row, v) alone, so the token is a function of (logits, seed): the host takes no
part, and a CUDA graph that advances the seed samples anew. Temperature 0 is the argmax without
noise.

Decisions:
- Nothing is sorted. The best token of all is almost always kept, which is verified by counting and
  summing the tokens that are more likely. If it is not kept, no less likely token is: the search
  continues among the more likely ones and ends, at the latest, with the most likely token. The
  result is the token that sorting would have given.
- A program owns a row, and reads it from L2 twice: once for the best token, once to count.
- The seed is a pointer; the noise is Philox, four tokens per call.
"""

import torch
import triton
import triton.language as tl

from ..common.launch import launch, next_power_of_2, tile
from ..common.operands import check_operands
from ..common.philox import ROUNDS, new_seed


@triton.jit
def sample_token_kernel(
    logits_ptr,  # (B, V)
    seed_ptr,  # ()
    token_ptr,  # (B,)
    V, stride, temperature, top_k, top_p,
    GREEDY: tl.constexpr, RESTRICTED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * stride
    seed = tl.load(seed_ptr)
    token = tl.zeros((), tl.int32)
    pivot = tl.full((), float("-inf"), tl.float32)  # tokens up to this z are not kept
    largest = tl.full((COLUMNS,), float("-inf"), tl.float32)
    searching = tl.full((), 1, tl.int32)
    while searching > 0:
        # --- the best token above the pivot ---
        best = tl.full((COLUMNS,), float("-inf"), tl.float32)
        best_token = tl.zeros((COLUMNS,), tl.int32)
        for first in range(0, V, COLUMNS):
            v = first + tl.arange(0, COLUMNS)
            z = _scaled(logits_ptr, v, V, temperature)
            largest = tl.maximum(largest, z)
            noisy = z if GREEDY else z + _gumbel(seed, row, first, COLUMNS)
            better = (noisy > best) & (z > pivot)
            best = tl.where(better, noisy, best)
            best_token = tl.where(better, v, best_token)
        found = tl.max(best, 0)
        if found > float("-inf"):
            token = tl.min(tl.where(best == found, best_token, V), 0)
        searching = tl.zeros((), tl.int32)
        # --- is it kept? ---
        if RESTRICTED:
            pivot = tl.load(logits_ptr + token).to(tl.float32) / temperature
            peak = tl.max(largest, 0)
            count = tl.zeros((COLUMNS,), tl.int32)  # of more likely tokens
            mass = tl.zeros((COLUMNS,), tl.float32)  # their probability, times `total`
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
    """z of the tokens v, -inf past the vocabulary."""
    x = tl.load(logits_ptr + v, v < V, other=float("-inf")).to(tl.float32)
    return x / temperature


@triton.jit
def _gumbel(seed, row, first, COLUMNS: tl.constexpr):
    """Noise (COLUMNS,) of the tokens first + [0, COLUMNS), where both are multiples of 4."""
    cell = first // 4 + tl.arange(0, COLUMNS // 4)
    zero = tl.zeros((), tl.uint32)
    a, b, c, d = tl.philox(seed, cell, tl.cast(row, tl.uint32), zero, zero, ROUNDS)
    words = tl.join(tl.join(a, c), tl.join(b, d))  # (COLUMNS / 4, 2, 2): a, b, c, d of each cell
    u = (tl.reshape(words, (COLUMNS,)).to(tl.float32) + 0.5) * 2.0**-32
    # -log(1 - u), whose smallest values win; for these, 1 - u would lose their last digits
    e = tl.where(u < 0.015625, u * (1 + u * (0.5 + u * (1 / 3))), -tl.log(1 - u))
    return -tl.log(e)


def sample_token(
    logits: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sampled tokens (B,) int64; see `kernels.Ops`."""
    check_operands("sample_token", "logits (B, V)", logits)
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"sample_token: temperature is {temperature}, top_k {top_k} and top_p {top_p}; give "
            "temperature >= 0, top_k >= 0 and 0 < top_p <= 1"
        )
    B, V = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    if seed is None:
        seed = new_seed(logits.device)
    greedy = temperature == 0
    token = torch.empty(B, dtype=torch.int64, device=logits.device)
    elements, per_warp = tile("sample_token", logits.device)
    COLUMNS = min(max(next_power_of_2(V), 16), elements)
    rule = 1.0 if greedy else float(temperature), top_k or V, float(top_p)
    constants = {"GREEDY": greedy, "RESTRICTED": not greedy and (0 < top_k < V or top_p < 1)}
    constants |= {"COLUMNS": COLUMNS, "num_warps": max(COLUMNS // per_warp, 1)}
    operands = logits, seed, token, V, logits.stride(0), *rule
    launch(sample_token_kernel, (B,), *operands, **constants)
    return token
