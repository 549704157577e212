"""The packed GPT equals the reference over every table: weights, logits, loss, gradients.

On a CPU models are compared in fp64, where only a wrong equation makes a difference. On a GPU they
are compared in fp32, because the kernels are not compiled for fp64.
"""

from dataclasses import replace

import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm

import kernels
from gpt.models import packed, reference
from gpt.models.layouts import lecture_from_packed, packed_from_lecture
from tests.gpt.configs import CONFIGS, LECTURE, draw_tokens, packed_from, randomise
from tests.operands import DEVICE

TABLES = ("torch", "triton")
EVERY_SWITCH = ("lecture", "gelu", "softcap", "qkv bias", "documents", "one head", "gpt2")
EVERY_SWITCH += ("modern", "grouped window")
DTYPE, TOLERANCE = (torch.float64, 1e-12) if DEVICE == "cpu" else (torch.float32, 1e-5)


def build(ops, config, dtype=torch.float32):
    """A packed GPT with the weights of `build_reference`."""
    return packed_from(build_reference(config), ops, dtype)


def build_reference(config, dtype=torch.float32, device="cpu"):
    return randomise(reference.GPT(config)).to(device, dtype)


def gradients(trained):
    return {name: w.grad for name, w in trained.named_parameters(remove_duplicate=False)}


def assert_same(actual, exact, name, least=0.0):
    """The error is within TOLERANCE of the largest element, or of `least` if that is larger."""
    assert actual.shape == exact.shape, name
    error = (actual.cpu().double() - exact).abs().max()
    assert error <= TOLERANCE * max(exact.abs().max().item(), least), f"{name}: {error}"


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_return_to_the_layout_of_the_reference_bit_for_bit(name):
    model = build_reference(CONFIGS[name])
    expected, before = model.state_dict(), torch.get_rng_state()
    state = lecture_from_packed(packed_from_lecture(expected, CONFIGS[name]), CONFIGS[name])
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], weight) for key, weight in expected.items())
    assert torch.equal(torch.get_rng_state(), before)  # no random numbers are drawn


@pytest.mark.parametrize(
    ("name", "T", "table"),
    [
        *((name, 7, "torch") for name in CONFIGS),
        *((name, 7, "triton") for name in EVERY_SWITCH),
        *(("modern", T, table) for T in (1, 8) for table in TABLES),
    ],
)
def test_logits_loss_and_gradients_equal_the_reference(name, T, table):
    config = CONFIGS[name]
    tokens, targets = draw_tokens(2, T), draw_tokens(2, T, seed=1)
    targets[1, 0] = -1  # ignored
    model, packed_model = build_reference(config, torch.float64), build(table, config, DTYPE)

    logits, loss = model(tokens, targets)
    loss.backward()
    assert_same(packed_model(tokens.to(DEVICE))[0], logits, "logits")
    no_logits, fused_loss = packed_model(tokens.to(DEVICE), targets.to(DEVICE))
    assert no_logits is None  # they are never held whole
    assert_same(fused_loss, loss, "loss")
    fused_loss.backward()
    expected, actual = packed_from_lecture(gradients(model), config), gradients(packed_model)
    assert actual.keys() == expected.keys()
    # where the gradient of the softmax nearly cancels, its error is that of its terms
    least = 0.01 * max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        assert_same(actual[name], gradient, name, least if DEVICE == "cuda" else 0.0)


@pytest.mark.parametrize("name", CONFIGS)
def test_fresh_models_of_one_seed_have_the_same_weights(name):
    config = CONFIGS[name]
    models = [reference.GPT(config), packed.GPT(config, kernels.load("torch"))]
    for seed in (0, 1):
        for fresh in models:
            torch.manual_seed(seed)
            fresh.initialise()
        expected = packed_from_lecture(models[0].state_dict(), config)
        for name, weight in models[1].state_dict().items():
            assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("name", ["lecture", "modern"])
def test_dropout_is_where_the_reference_has_it(name, monkeypatch):
    """With the same known mask for each dropout of (B, T, C), the logits are equal."""

    def mask(x, p, training=True, inplace=False):
        if not training or not p or x.shape[-1] != LECTURE.n_embd:  # that of attention weights
            return x
        generator = torch.Generator().manual_seed(0)
        return x * torch.randint(2, x.shape, generator=generator).to(x) / (1 - p)

    rates = []  # of attention weights

    def attention_without_dropout(*operands, dropout_p, **options):
        rates.append(dropout_p)
        return table.attention_qkv(*operands, **options)

    config = replace(CONFIGS[name], dropout=0.5, embedding_dropout=0.25)
    table = kernels.load("torch", DEVICE)
    ops = table._replace(attention_qkv=attention_without_dropout)
    model, packed_model = build_reference(config, torch.float64), build(ops, config, DTYPE)
    tokens = draw_tokens(2, 7)
    monkeypatch.setattr(torch.nn.functional, "dropout", mask)
    dropped, whole = (model.train(training)(tokens)[0] for training in (True, False))
    assert not torch.equal(dropped, whole)
    for training, expected, p in ((True, dropped, 0.5), (False, whole, 0.0)):
        rates.clear()
        assert_same(packed_model.train(training)(tokens.to(DEVICE))[0], expected, "logits")
        assert rates == config.n_layer * [p]


@pytest.mark.parametrize("table", TABLES)
def test_parametrized_weights_are_trained(table):
    """Operations read the weights of `up`, `down` and `lm_head` without calling these modules."""
    tokens = draw_tokens(2, 7).to(DEVICE)
    models = [build(table, LECTURE, DTYPE) for _ in range(2)]
    plain, adapted = ([m.blocks[0].ffwd.up, m.blocks[1].ffwd.down, m.lm_head] for m in models)
    for module in adapted:
        weight_norm(module)
    for model in models:
        model(tokens, tokens)[1].backward()
    for module, with_norm in zip(plain, adapted, strict=True):
        norm = with_norm.parametrizations.weight.original0  # (features, 1); W = norm v / |v|
        expected = (module.weight.grad * module.weight / norm).sum(1, keepdim=True)
        assert_same(norm.grad, expected.cpu().double(), "norm")
