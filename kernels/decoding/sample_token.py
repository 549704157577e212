"""Sampling a token of each row from softmax(logits / temperature) restricted by top-k and top-p.

With logits x, temperature T and Gumbel noise g = -log(-log(1 - u)), u uniform in (0, 1),

    token = argmax over kept v of x[v] / T + g[v]

is a sample from softmax(x / T) over the kept tokens (Maddison et al. 2014, "A* sampling"): those
for which fewer than top_k tokens are more likely, with a total probability below top_p, where the
probabilities are those that top_k leaves. The noise is a function of (seed, row, v) alone, so the
token is a function of (logits, seed): the host takes no part, and a CUDA graph that advances the
seed samples anew. Temperature 0 is the argmax without noise.

Decisions:
- Nothing is sorted. The best token of all is almost always kept, which is verified by counting and
  summing the tokens that are more likely. If it is not kept, no less likely token is: the search
  continues among the more likely ones and ends, at the latest, with the most likely token. The
  result is the token that sorting would have given.
- A program owns a row, and reads it from L2 twice: once for the best token, once to count. With
  both top_k and top_p, it first finds the k-th largest logit by bisection, in about 15 more passes.
- Tokens are compared by differences, (x - x') + T (g - g') > 0: x / T would overflow for a small
  T, or leave no digits to the noise.
- The seed is a pointer; the noise is Philox, four tokens per call. For a vocabulary larger than a
  tile, all SMs draw it first: one of them alone would compute its logarithms for longer than it
  reads the logits.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..common.launch import cdiv, launch, next_power_of_2, overlapped, tile
from ..common.operands import check_operands, check_sampling_rule
from ..common.operator import is_traced, register
from ..common.philox import ROUNDS, new_seed

LARGEST = tl.constexpr(torch.finfo(torch.float32).max)


@triton.jit
def gumbel_noise_kernel(
    seed_ptr,  # ()
    noise_ptr,  # (B, width)
    width,
    COLUMNS: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    if OVERLAPPED:
        gdc_launch_dependents()
        gdc_wait()
    first, row = tl.program_id(0) * COLUMNS, tl.program_id(1)
    noise = _gumbel(tl.load(seed_ptr), row, first, COLUMNS)
    tl.store(noise_ptr + row.to(tl.int64) * width + first + tl.arange(0, COLUMNS), noise)


@triton.jit
def sample_token_kernel(
    logits_ptr,  # (B, V)
    seed_ptr,  # ()
    noise_ptr,  # (B, width), or None for one tile and for the most likely token
    token_ptr,  # (B,)
    V, stride, width, temperature, top_k, top_p,
    GREEDY: tl.constexpr, RESTRICTED: tl.constexpr, BOTH: tl.constexpr, COLUMNS: tl.constexpr,
    OVERLAPPED: tl.constexpr,
):  # fmt: skip
    if OVERLAPPED:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * stride
    seed = tl.load(seed_ptr)
    if noise_ptr is not None:
        noise_ptr += row.to(tl.int64) * width
    token = tl.zeros((), tl.int32)
    least = tl.full((), float("-inf"), tl.float32)  # the logit of the top_k-th token
    if BOTH:
        least = _least_of_top_k(logits_ptr, V, temperature, top_k, COLUMNS)
    pivot = tl.full((), float("-inf"), tl.float32)  # tokens up to this logit are not kept
    largest = tl.full((COLUMNS,), float("-inf"), tl.float32)
    searching = tl.full((), 1, tl.int32)
    while searching > 0:
        # --- the best token above the pivot ---
        best = tl.full((COLUMNS,), float("-inf"), tl.float32)
        best_noise = tl.zeros((COLUMNS,), tl.float32)
        best_token = tl.zeros((COLUMNS,), tl.int32)
        for first in range(0, V, COLUMNS):
            v = first + tl.arange(0, COLUMNS)
            x = _logits(logits_ptr, v, V)
            largest = tl.maximum(largest, x)
            if GREEDY:
                noise = best_noise
            elif noise_ptr is not None:
                noise = tl.load(noise_ptr + v)
            else:
                noise = _gumbel(seed, row, first, COLUMNS)
            better = (x - best + temperature * (noise - best_noise) > 0) & (x > pivot)
            best = tl.where(better, x, best)
            best_noise = tl.where(better, noise, best_noise)
            best_token = tl.where(better, v, best_token)
        reference = tl.minimum(tl.max(best, 0), LARGEST)
        found = reference > float("-inf")
        if found:
            noisy = (best - reference) / temperature + best_noise
            token = tl.min(tl.where(noisy == tl.max(noisy, 0), best_token, V), 0)
        searching = tl.zeros((), tl.int32)
        # --- is it kept? ---
        if RESTRICTED:
            pivot = tl.load(logits_ptr + token).to(tl.float32)
            peak = tl.max(largest, 0)
            count = tl.zeros((COLUMNS,), tl.int32)  # of more likely tokens
            mass = tl.zeros((COLUMNS,), tl.float32)  # their probability, times `total`
            total = tl.zeros((COLUMNS,), tl.float32)  # of what top_k leaves
            for first in range(0, V, COLUMNS):
                x = _logits(logits_ptr, first + tl.arange(0, COLUMNS), V)
                p = tl.exp((x - peak) / temperature)
                count += (x > pivot).to(tl.int32)
                mass += tl.where(x > pivot, p, 0)
                total += tl.where(x >= least, p, 0)
            out = (tl.sum(count, 0) >= top_k) | (tl.sum(mass, 0) >= top_p * tl.sum(total, 0))
            searching = (out & found).to(tl.int32)
    tl.store(token_ptr + row, token)


@triton.jit
def _logits(logits_ptr, v, V):
    """The logits of the tokens v, -inf past the vocabulary."""
    return tl.load(logits_ptr + v, v < V, other=float("-inf")).to(tl.float32)


@triton.jit
def _least_of_top_k(logits_ptr, V, temperature, top_k, COLUMNS: tl.constexpr):
    """The top_k-th largest logit, or what is larger: the one below which probabilities are 0.

    By bisection: `low` and `high` enclose it, and each step moves one of them to a logit.
    """
    largest = tl.full((COLUMNS,), float("-inf"), tl.float32)
    for first in range(0, V, COLUMNS):
        largest = tl.maximum(largest, _logits(logits_ptr, first + tl.arange(0, COLUMNS), V))
    high = tl.max(largest, 0)
    low = high - 104 * temperature  # exp(-104) is 0 in fp32
    while low < high:
        middle = low + (high - low) / 2
        middle = tl.where(middle < high, middle, low)  # rounded up to high
        count = tl.zeros((COLUMNS,), tl.int32)  # of logits above the middle
        above = tl.full((COLUMNS,), float("inf"), tl.float32)  # the smallest of these
        below = tl.full((COLUMNS,), float("-inf"), tl.float32)  # the largest of the others
        for first in range(0, V, COLUMNS):
            x = _logits(logits_ptr, first + tl.arange(0, COLUMNS), V)
            count += (x > middle).to(tl.int32)
            above = tl.where(x > middle, tl.minimum(above, x), above)
            below = tl.where(x > middle, below, tl.maximum(below, x))
        is_above = tl.sum(count, 0) >= top_k
        high = tl.where(is_above, high, tl.maximum(tl.max(below, 0), low))
        low = tl.where(is_above, tl.min(above, 0), low)
    return low


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


def _sample(logits, seed, greedy, scale, top_k, top_p):
    B, V = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    by_k, by_p = not greedy and 0 < top_k < V, not greedy and top_p < 1
    token = torch.empty(B, dtype=torch.int64, device=logits.device)
    elements, per_warp, of_program = tile("sample_token", logits.device)
    COLUMNS = min(max(next_power_of_2(V), 16), elements)
    overlap, noise, width = overlapped(logits.device), None, cdiv(V, COLUMNS) * COLUMNS
    if V > COLUMNS and not greedy:
        noise = torch.empty(B, width, dtype=torch.float32, device=logits.device)
        options = {"COLUMNS": of_program, "num_warps": 4} | overlap
        launch(gumbel_noise_kernel, (width // of_program, B), seed, noise, width, **options)
    constants = {"GREEDY": greedy, "RESTRICTED": by_k or by_p, "BOTH": by_k and by_p}
    constants |= {"COLUMNS": COLUMNS, "num_warps": max(COLUMNS // per_warp, 1)}
    operands = logits, seed, noise, token, V, logits.stride(0), width, scale, top_k or V, top_p
    launch(sample_token_kernel, (B,), *operands, **constants, **overlap)
    return token


_operator = register(
    "sample_token(Tensor logits, Tensor seed, bool greedy, float scale, int top_k, float top_p) "
    "-> Tensor",
    _sample,
    lambda logits, *_: logits.new_empty(logits.shape[0], dtype=torch.int64),
)


def sample_token(
    logits: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sample a token of each row from softmax(logits / temperature): (B, V) -> (B,) int64.

    Only tokens for which fewer than `top_k` others are more likely are kept (0 keeps all), and of
    these only those whose more likely ones have a total probability below `top_p` (1 keeps all),
    after the probabilities that top_k leaves are renormalised: as in Hugging Face's `generate`, but
    equally likely tokens are kept together (top_p is nucleus sampling, Holtzman et al. 2020).

    Args:
        logits: (B, V) fp32, fp16 or bf16, with any strides.
        temperature: 0 selects the most likely token, the first of equals.
        seed: an int64 tensor () on the device, of which the result is a function; None draws it
            from the device's default generator.

    Raises ValueError for logits that are not a matrix, and for options that are out of range.
    """
    check_operands("sample_token", "logits (B, V)", logits, one_dtype=True)
    scale = check_sampling_rule(temperature, top_k, top_p)
    seed = new_seed(logits.device) if seed is None else seed
    function = _operator if is_traced() else _sample
    return function(logits, seed, temperature == 0, scale, top_k, float(top_p))
