"""Sampling has the stated distribution. The operation's tests are tests/kernels/decoding."""

import pytest
import torch

from gpt.generation.sampling import Sampling
from tests.sampling import DRAWING_RULES, assert_drawn_from, restricted_softmax

LOGITS = torch.tensor([1.0, 3.0, -1.0, 2.0, 2.0, -float("inf"), 0.0, 0.5])


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), DRAWING_RULES)
def test_samples_have_the_restricted_distribution(temperature, top_k, top_p):
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature, top_k, top_p, vocab_size=len(LOGITS))
    padded = torch.cat((LOGITS, torch.tensor([9.0, 9.0])))  # above every other logit
    drawn = sampling.sample(padded.repeat(20_000, 1), generator)
    assert_drawn_from(drawn, restricted_softmax(LOGITS, temperature, top_k, top_p))


def test_temperature_zero_selects_the_most_likely_token():
    assert Sampling(temperature=0.0).sample(LOGITS[None]).tolist() == [1]
