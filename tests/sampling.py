"""The distribution of sampled tokens, and a test of it."""

import math

import torch

# temperature, top_k, top_p
DRAWING_RULES = ((1.0, 0, 1.0), (2.0, 0, 1.0), (1.0, 2, 1.0), (1.0, 0, 0.7), (2.0, 5, 0.7))


def restricted_softmax(logits, temperature, top_k, top_p):
    """The distribution (V,) from which Hugging Face's `generate` samples, in fp64.

    For (2.0, 5, 0.7) it depends on the order of top_k and top_p.
    """
    z = logits.cpu().double() / temperature
    if top_k:  # TopKLogitsWarper
        z = z.masked_fill(z < z.topk(top_k).values[-1], -math.inf)
    if top_p < 1:  # TopPLogitsWarper
        ascending, order = z.sort()
        z[order[ascending.softmax(0).cumsum(0) <= 1 - top_p]] = -math.inf
    return z.softmax(0)


def assert_drawn_from(drawn, probabilities) -> None:
    """Assert by a chi-square test at p > 0.001 that tokens (N,) have the probabilities (V,)."""
    observed = drawn.cpu().bincount(minlength=len(probabilities))
    possible = probabilities > 0
    assert observed[~possible].sum() == 0, f"impossible tokens were drawn: {observed.tolist()}"
    observed, expected = observed[possible], len(drawn) * probabilities[possible]
    assert expected.min() >= 5, "too few draws for a chi-square test"
    if len(expected) > 1:
        chi_square = ((observed - expected) ** 2 / expected).sum()
        freedom = torch.tensor(len(expected) - 1, dtype=torch.float64)
        p = torch.special.gammaincc(freedom / 2, chi_square / 2).item()
        assert p > 0.001, f"drawn {observed.tolist()}, expected {expected.tolist()}: p = {p:.2g}"
