"""Presets have the published numbers; configs refuse bad values and survive JSON."""

import json
import re
from dataclasses import replace

import pytest

from gpt import UserError
from gpt.config.model import ModelConfig
from gpt.config.presets import PRESETS
from gpt.config.train import TrainConfig


def test_the_lecture_preset_has_the_numbers_of_the_video():
    config = PRESETS["lecture"]
    assert (config.batch_size, config.model.block_size, config.max_iters) == (64, 256, 5000)
    assert (config.learning_rate, config.eval_interval) == (3e-4, 500)
    assert (config.model.n_embd, config.model.n_head, config.model.n_layer) == (384, 6, 6)
    assert config.model.dropout == 0.2
    assert not config.decay_lr


def test_the_nanogpt_presets_have_its_numbers():
    config = PRESETS["shakespeare-char"]
    assert (config.batch_size, config.model.block_size, config.max_iters) == (64, 256, 5000)
    assert (config.learning_rate, config.min_lr, config.warmup_iters) == (1e-3, 1e-4, 100)
    assert (config.beta2, config.weight_decay, config.grad_clip) == (0.99, 0.1, 1.0)
    assert config.eval_interval == 250
    assert not config.model.bias
    gpt2 = PRESETS["gpt2"]
    assert gpt2.batch_size * gpt2.model.block_size * gpt2.gradient_accumulation_steps == 491_520
    models = [PRESETS[f"gpt2{size}"].model for size in ("", "-medium", "-large", "-xl")]
    sizes = [(model.n_layer, model.n_head, model.n_embd) for model in models]
    assert sizes == [(12, 12, 768), (24, 16, 1024), (36, 20, 1280), (48, 25, 1600)]


@pytest.mark.parametrize(
    ("config_class", "change", "sentence"),
    [
        (ModelConfig, {"vocab_size": -1}, "--vocab-size is -1; it must be at least 0"),
        (ModelConfig, {"n_layer": 4097}, "it must be at least 1 and less than 4097"),
        (ModelConfig, {"logit_softcap": float("nan")}, "is nan; it must be finite and at least 0"),
        (ModelConfig, {"n_head": 5}, "--n-embd 384 is not divisible by --n-head 5"),
        (ModelConfig, {"n_kv_head": 4}, "--n-kv-head 4 does not divide --n-head 6"),
        (ModelConfig, {"source_size": 256}, "--source-size 256 must be less than"),
        (ModelConfig, {"n_embd": 18, "position": "rope"}, "rope needs an even head size"),
        (TrainConfig, {"learning_rate": 0.0, "decay_lr": True}, "it must be above 0 with"),
        (TrainConfig, {"parallel": "fsdp", "optimizer": "muon"}, "support --optimizer muon; use"),
        (TrainConfig, {"parallel": "fsdp", "step": "compile"}, "not support --compile; use"),
        (TrainConfig, {"parallel": "fsdp", "lecture": "bigram"}, "not support --lecture; use"),
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
    for config_class, values in ((ModelConfig, model), (TrainConfig, train)):
        for name, value in values.items():
            with pytest.raises(UserError, match=f"^--{name.replace('_', '-')} is {value}; it must"):
                config_class(**{name: value})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name):
    record = json.loads(json.dumps(PRESETS[name].to_dict()))
    assert PRESETS[name].preset == name
    assert TrainConfig.from_dict(record, "x") == PRESETS[name]
    assert ModelConfig.from_dict(record["model"], "x") == PRESETS[name].model


BAD_FIELDS = [{"n_layer": value} for value in ("6", 6.0, True, None, 0)]
BAD_FIELDS += [{"bias": 1}, {"dropout": "0"}, {"dropout": True}, {"activation": "swish"}]


@pytest.mark.parametrize("change", [*BAD_FIELDS, {"activation": ["relu"]}, {"more": 1}])
def test_from_dict_names_the_source_of_a_damaged_record(change):
    record = ModelConfig().to_dict() | change
    with pytest.raises(UserError, match=r"^last\.json"):
        ModelConfig.from_dict(record, "last.json")
    with pytest.raises(UserError, match=r"^last\.json"):
        TrainConfig.from_dict(TrainConfig().to_dict() | {"model": record}, "last.json")


@pytest.mark.parametrize("record", [None, [], "", 0, {}])
def test_from_dict_refuses_what_is_not_a_record(record):
    with pytest.raises(UserError, match="x has no ModelConfig; it is damaged or of another ver"):
        ModelConfig.from_dict(record, "x")


def test_from_dict_gives_fields_of_a_newer_version_their_defaults():
    old = replace(PRESETS["gpt2"], seed=7).to_dict()
    del old["model"]["n_kv_head"], old["model"]["window"], old["nan"]
    assert TrainConfig.from_dict(old, "x") == replace(PRESETS["gpt2"], seed=7)


def test_from_dict_refuses_unknown_options():
    new = PRESETS["gpt2"].to_dict() | {"speed": 2}
    with pytest.raises(UserError, match=r"^x is of another version, with unknown options: speed$"):
        TrainConfig.from_dict(new, "x")
