"""Weights keep their bits in both conversions, and a state dict of another model is rejected."""

import re

import pytest
import torch

import kernels
from gpt import UserError
from gpt.models import packed, reference
from gpt.models.layouts import lecture_from_packed, packed_from_lecture
from tests.gpt.configs import CONFIGS, ENCODERS, LECTURE, randomise

EVERY = CONFIGS | ENCODERS


def lecture_state(config=LECTURE):
    return randomise(reference.GPT(config)).state_dict()


def packed_state(config=LECTURE):
    return randomise(packed.GPT(config, kernels.load("torch"))).state_dict()


def assert_equal(state, other):
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("name", EVERY)
def test_round_trips_are_bit_equal(name):
    config = EVERY[name]
    lecture, ours = lecture_state(config), packed_state(config)
    before = torch.get_rng_state()
    there = packed_from_lecture(lecture, config)
    back = lecture_from_packed(ours, config)
    assert there.keys() == ours.keys()
    assert_equal(lecture_from_packed(there, config), lecture)
    assert_equal(packed_from_lecture(back, config), ours)
    assert torch.equal(torch.get_rng_state(), before)  # no random numbers are drawn


@pytest.mark.parametrize("convert", [packed_from_lecture, lecture_from_packed])
@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("ln_f.bias", None, "'ln_f.bias' is missing"),
        ("blocks.2.ln1.weight", (32,), "the model has no 'blocks.2.ln1.weight'"),
        ("lm_head.weight", (32, 11), "has shape (32, 11), and the model expects (11, 32)"),
    ],
)
def test_a_state_dict_of_another_model_is_rejected(convert, name, shape, message):
    state = lecture_state() if convert is packed_from_lecture else packed_state()
    state.pop(name, None)
    if shape:
        state[name] = torch.ones(shape)
    with pytest.raises(UserError, match=re.escape(message)):
        convert(state, LECTURE)
