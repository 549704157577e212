"""The distribution of sampled tokens, and a test of it."""

import math

import torch

# temperature, top_k, top_p
DRAWING_RULES = ((1.0, 0, 1.0), (2.0, 0, 1.0), (1.0, 2, 1.0), (1.0, 0, 0.7), (0.7, 5, 0.9))


def restricted_softmax(logits, temperature, top_k, top_p):
    """softmax(logits / temperature) in fp64 over the tokens that top_k and top_p keep: (V,)."""
    p = (logits.cpu().double() / temperature).softmax(0)
    for token, own in enumerate(p.tolist()):
        more_likely = p[p > own]
        if (0 < top_k <= len(more_likely)) or more_likely.sum() >= top_p:
            logits = logits.index_fill(0, torch.tensor(token, device=logits.device), -math.inf)
    return (logits.cpu().double() / temperature).softmax(0)


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
