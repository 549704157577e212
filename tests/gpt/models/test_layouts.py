"""Weights keep their bits in both conversions, and a state dict of another model is rejected."""

import re
from dataclasses import replace

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
    there = packed_from_lecture(lecture, config)
    back = lecture_from_packed(ours, config)
    assert there.keys() == ours.keys()
    assert back.keys() == lecture.keys()
    assert_equal(lecture_from_packed(there, config), lecture)
    assert_equal(packed_from_lecture(back, config), ours)


def test_names_are_those_of_the_lecture():
    expected = {
        "token_embedding_table.weight",
        "position_embedding_table.weight",
        "ln_f.weight",
        "ln_f.bias",
        "lm_head.weight",
        "lm_head.bias",
    }
    for block in ("blocks.0", "blocks.1"):
        for head in (f"{block}.sa.heads.0", f"{block}.sa.heads.1"):
            expected |= {f"{head}.{part}.weight" for part in ("key", "query", "value")}
            expected.add(f"{head}.tril")
        for module in ("sa.proj", "ffwd.net.0", "ffwd.net.2", "ln1", "ln2"):
            expected |= {f"{block}.{module}.weight", f"{block}.{module}.bias"}
    lecture = lecture_from_packed(packed_state(), LECTURE)
    assert lecture.keys() == expected
    for name, tensor in lecture.items():
        if name.endswith(".tril"):
            assert tensor.tolist() == [[float(s <= t) for s in range(8)] for t in range(8)]


def test_rows_of_the_packed_matrix():
    config = replace(LECTURE, qkv_bias=True)
    lecture = lecture_state(config)
    ours = packed_from_lecture(lecture, config)
    for kind in ("weight", "bias"):
        packed = ours[f"blocks.1.sa.qkv.{kind}"]
        assert packed.shape[0] == 3 * 32
        for part, row in (("query", 0), ("key", 32), ("value", 64)):
            for head in range(2):
                rows = packed[row + 16 * head : row + 16 * (head + 1)]
                assert torch.equal(rows, lecture[f"blocks.1.sa.heads.{head}.{part}.{kind}"])


def test_heads_of_a_group_share_keys_and_values():
    config = replace(LECTURE, n_head=4, n_kv_head=2)
    lecture = reference.GPT(config)
    for block in lecture.blocks:
        for part, own in (("query", [0, 1, 2, 3]), ("key", [0, 0, 2, 2]), ("value", [0, 0, 2, 2])):
            modules = [getattr(head, part) for head in block.sa.heads]
            assert [modules.index(module) for module in modules] == own
    state = randomise(lecture).state_dict()
    packed = packed_from_lecture(state, config)["blocks.1.sa.qkv.weight"]
    names = [f"{head}.query" for head in range(4)] + ["0.key", "2.key", "0.value", "2.value"]
    assert packed.shape == (8 * 8, 32)
    for name, rows in zip(names, packed.split(8), strict=True):
        assert torch.equal(rows, state[f"blocks.1.sa.heads.{name}.weight"])


@pytest.mark.parametrize("convert", [packed_from_lecture, lecture_from_packed])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("ln_f.bias"), "'ln_f.bias' is missing"),
        (
            lambda state: state.update({"blocks.2.ln1.weight": torch.ones(32)}),
            "the model has no 'blocks.2.ln1.weight'",
        ),
        (
            lambda state: state.update({"lm_head.weight": torch.ones(32, 11)}),
            "'lm_head.weight' has shape (32, 11), and the model expects (11, 32)",
        ),
        (lambda state: state.clear(), "'token_embedding_table.weight' is missing"),
    ],
)
def test_a_state_dict_of_another_model_is_rejected(convert, spoil, message):
    state = lecture_state() if convert is packed_from_lecture else packed_state()
    spoil(state)
    with pytest.raises(UserError, match=re.escape(message)):
        convert(state, LECTURE)


def test_conversion_draws_no_random_numbers():
    lecture = lecture_state()
    before = torch.get_rng_state()
    lecture_from_packed(packed_from_lecture(lecture, LECTURE), LECTURE)
    assert torch.equal(torch.get_rng_state(), before)
