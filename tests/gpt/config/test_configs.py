"""Presets have the published numbers; configs refuse bad values and survive JSON."""

import re
from dataclasses import fields, replace

import pytest

from gpt import UserError
from gpt.config.model import ModelConfig
from gpt.config.presets import PRESETS
from gpt.config.train import TrainConfig
from gpt.generation.sampling import Sampling

PUBLISHED = {
    "lecture": {"batch_size": 64, "block_size": 256, "n_embd": 384, "n_head": 6, "n_layer": 6}
    | {"learning_rate": 3e-4, "max_iters": 5000, "eval_interval": 500, "dropout": 0.2},
    "shakespeare-char": {"batch_size": 64, "block_size": 256, "learning_rate": 1e-3, "bias": False}
    | {"min_lr": 1e-4, "warmup_iters": 100, "beta2": 0.99, "weight_decay": 0.1, "grad_clip": 1.0}
    | {"max_iters": 5000, "eval_interval": 250},
    "gpt2": {"batch_size": 12, "block_size": 1024, "gradient_accumulation_steps": 40}
    | {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_numbers_of_the_video_or_of_nanogpt(name):
    values = vars(PRESETS[name]) | vars(PRESETS[name].model)
    assert {option: values[option] for option in PUBLISHED[name]} == PUBLISHED[name]
    assert PRESETS[name].decay_lr == (name != "lecture")


@pytest.mark.parametrize(
    ("config_class", "change", "sentence"),
    [
        (ModelConfig, {"vocab_size": -1}, "--vocab-size is -1; it must be at least 0"),
        (ModelConfig, {"n_layer": 4097}, "it must be at least 1 and less than 4097"),
        (ModelConfig, {"logit_softcap": float("nan")}, "is nan; it must be at least 0 and less"),
        (TrainConfig, {"data": ""}, "--data is empty; without it, 'auto' is used"),
        (TrainConfig, {"out_dir": "a\0b"}, "--out-dir has a null character; remove it"),
        (ModelConfig, {"n_head": 5}, "--n-embd 384 is not divisible by --n-head 5"),
        (ModelConfig, {"n_kv_head": 4}, "--n-kv-head 4 does not divide --n-head 6"),
        (ModelConfig, {"n_embd": 18, "position": "rope"}, "rope needs an even head size"),
        (TrainConfig, {"learning_rate": 0.0, "decay_lr": True}, "it must be above 0 with"),
        (Sampling, {"temperature": -1.0}, "--temperature is -1.0"),
        (Sampling, {"temperature": float("nan")}, "--temperature is nan"),
        (Sampling, {"top_k": -1}, "--top-k is -1"),
        (Sampling, {"top_p": 0.0}, "--top-p is 0.0; it must be above 0"),
        (Sampling, {"top_p": 1.5}, "--top-p is 1.5"),
    ],
)
def test_a_config_validates_itself(config_class, change, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        config_class(**change)


def test_every_number_has_limits():
    nan = float("nan")
    model = {"n_head": 0, "n_kv_head": -1, "n_layer": 0, "n_embd": 0, "block_size": 0, "window": -1}
    model |= {"dropout": 1.0, "embedding_dropout": -0.1}
    train = {"max_iters": -1, "eval_interval": 0, "log_interval": 0, "batch_size": -4, "keep": -1}
    train |= {"learning_rate": nan, "weight_decay": -1.0, "grad_clip": float("inf"), "beta2": 1.0}
    train |= {"seed": 2**64}
    for config_class in (ModelConfig, TrainConfig):
        numbers = [field for field in fields(config_class) if field.type in (int, float)]
        for name, value in ((field.name, field.type(10**30)) for field in numbers):
            with pytest.raises(UserError, match=rf"^--{name.replace('_', '-')} is 1.*; it must"):
                config_class(**{name: value})
    for config_class, values in ((ModelConfig, model), (TrainConfig, train)):
        for name, value in values.items():
            with pytest.raises(UserError, match=f"^--{name.replace('_', '-')} is {value}; it must"):
                config_class(**{name: value})


BAD_FIELDS = [{"n_layer": value} for value in ("6", 6.0, True, None, 0)]
BAD_FIELDS += [{"bias": 1}, *({"dropout": value} for value in ("0", True, 10**400))]
BAD_FIELDS += [{"activation": "swish"}, {"activation": ["relu"]}, {"more": 1}]
RECORDS = [(ModelConfig().to_dict() | change, "^x") for change in BAD_FIELDS]
RECORDS += [(record, "^x has no ModelConfig; it is damaged or") for record in (None, [], "", 0, {})]
RECORDS += [({"speed": 2}, "^x is of another version, with unknown options: speed$")]


@pytest.mark.parametrize(("record", "message"), RECORDS)
def test_from_dict_names_the_source_of_a_damaged_record(record, message):
    with pytest.raises(UserError, match=message):
        ModelConfig.from_dict(record, "x")
    with pytest.raises(UserError, match=message):
        TrainConfig.from_dict(TrainConfig().to_dict() | {"model": record}, "x")


def test_from_dict_gives_fields_of_a_newer_version_their_defaults():
    old = replace(PRESETS["gpt2"], seed=7).to_dict()
    del old["model"]["n_kv_head"], old["model"]["window"], old["nan"]
    old["model"]["source_size"], old["parallel"] = 0, "ddp"  # options of older versions
    assert TrainConfig.from_dict(old, "x") == replace(PRESETS["gpt2"], seed=7)
