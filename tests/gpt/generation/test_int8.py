"""int8 weights: the rounding error, and the model with them."""

import pytest
import torch

import kernels
from gpt.generation import int8
from gpt.generation.kv_cache import CachedGPT
from gpt.models import packed
from tests.gpt.configs import CONFIGS, LECTURE, draw_tokens, randomise
from tests.operands import DEVICE


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
