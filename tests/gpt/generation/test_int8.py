"""int8 weights: the rounding error, the same model in every implementation, and loading."""

import copy

import pytest
import torch

import kernels
from gpt import UserError
from gpt.generation import int8
from gpt.generation.kv_cache import CachedGPT
from gpt.models import lecture, packed, reference
from gpt.runs.portable_state import load_portable_state, portable_state
from tests.gpt.configs import CONFIGS, LECTURE, draw_tokens, randomise
from tests.operands import DEVICE

SOME = ("lecture", "gpt2", "modern")  # biases, a tied head, no biases


def build(name="lecture"):
    return randomise(packed.GPT(CONFIGS[name], kernels.load("torch", DEVICE))).to(DEVICE).eval()


def test_the_error_of_a_weight_is_at_most_half_a_step():
    linear = torch.nn.Linear(33, 7)
    with torch.no_grad():
        linear.weight[2] *= 1e-3  # a channel has its own scale
        linear.weight[3] = 0
    quantized = int8.QuantizedLinear(linear)
    error = (quantized.weight - linear.weight).abs()
    assert (error <= 0.5001 * quantized.scale[:, None]).all()
    extremes = quantized.int8.abs().amax(1)
    assert extremes.tolist() == [127, 127, 127, 0, 127, 127, 127]
    assert torch.equal(quantized.weight[3], torch.zeros(33))
    x = torch.randn(2, 33)
    assert torch.equal(quantized(x), torch.nn.functional.linear(x, quantized.weight, linear.bias))


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_the_model_has_the_logits_of_the_rounded_weights(name):
    quantized, rounded = build(name), build(name)
    int8.quantize(quantized)
    for key, module in quantized.named_modules():
        if isinstance(module, int8.Quantized):
            rounded.get_submodule(key).weight.copy_(module.weight)
    tokens = draw_tokens(2, 8).to(DEVICE)
    logits = quantized(tokens)[0]
    assert torch.equal(logits, rounded(tokens)[0])
    if name != "documents":  # decoding is of one document
        cached = CachedGPT(quantized, 2)
        cached.prefill(tokens[:, :7])
        error = (cached.decode_one_token(tokens[:, 7]) - logits[:, 7]).abs().max()
        assert error <= 1e-5 * logits[:, 7].abs().max()
    assert torch.equal(quantized(tokens, tokens)[1], rounded(tokens, tokens)[1])
    assert not torch.equal(quantized(tokens)[0], build(name)(tokens)[0])
    matrices = sum(isinstance(module, int8.Quantized) for module in quantized.modules())
    assert matrices == 4 * LECTURE.n_layer + 2 - (name == "one head") * 4


@pytest.mark.parametrize("name", SOME)
def test_loading_restores_the_same_model(name):
    quantized = build(name)
    before = int8.megabytes(quantized)
    int8.quantize(quantized)
    assert int8.megabytes(quantized) < 0.5 * before
    state = copy.deepcopy(portable_state(quantized))
    assert any(key == "lm_head.int8" for key in state) == (name == "lecture")  # tied: once

    again = packed.GPT(CONFIGS[name], kernels.load("torch"))
    model = reference.GPT(CONFIGS[name])
    tokens = draw_tokens(2, 8)
    for fresh in (again, model):
        load_portable_state(fresh, int8.match_quantization(fresh, state))
    assert int8.is_quantized(again)
    assert torch.equal(again(tokens)[0], quantized.cpu()(tokens)[0])
    exact = model(tokens)[0]
    assert (again(tokens)[0] - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_scale_stays_fp32_when_the_model_is_cast(dtype):
    model = build("gpt2")
    int8.quantize(model)
    head, table = model.lm_head, model.token_embedding_table
    scale = head.scale.clone()
    model.to(dtype).to(DEVICE)  # the second leaves the dtype as it is
    assert torch.equal(head.scale, scale)
    assert head.int8.dtype == torch.int8
    assert head.weight.dtype == table.weight.dtype == dtype
    assert model(draw_tokens(1, 3).to(DEVICE))[0].dtype == dtype
    assert head.int8 is table.int8  # still one tensor
    assert head.scale is table.scale


def test_a_damaged_state_and_a_stage_of_the_lecture_are_rejected():
    model = build()
    int8.quantize(model)
    state = portable_state(model)
    with pytest.raises(UserError, match="a stage of the lecture"):
        int8.match_quantization(lecture.BigramLanguageModel(LECTURE), state)
    del state["lm_head.scale"]
    with pytest.raises(UserError, match=r"lm_head\.int8 has no matching scale"):
        int8.match_quantization(reference.GPT(LECTURE), state)
    with pytest.raises(UserError, match=r"'lm_head\.scale' is missing"):
        load_portable_state(model, int8.match_quantization(build(), state))
