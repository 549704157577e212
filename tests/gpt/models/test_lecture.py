"""The stages of the lecture: versions 1 to 3 are the same average, and later ones build on them."""

import pytest
import torch
from torch.nn import functional as F

from gpt.config.model import ModelConfig
from gpt.models import lecture
from tests.gpt.configs import CONFIGS, LECTURE, draw_tokens

VIDEO = ModelConfig(vocab_size=65, block_size=8, n_layer=3, n_head=4, n_embd=32)


def draw(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def build(stage, config=VIDEO, seed=0):
    torch.manual_seed(seed)
    return lecture.STAGES[stage](config)


@pytest.mark.parametrize(
    "average", [lecture.AverageWithLoops, lecture.AverageWithMatrix, lecture.AverageWithSoftmax]
)
@pytest.mark.parametrize("T", [1, 2, 8])
def test_versions_1_to_3_average_the_past(average, T):
    x = draw(3, T, 5)
    expected = x.cumsum(dim=1) / torch.arange(1, T + 1)[:, None]
    torch.testing.assert_close(average()(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "scale"), [(lecture.SelfAttention, 1.0), (lecture.one_head, 32**-0.5)]
)
def test_version_4_and_one_head_equal_pytorch_s_attention(layer, scale):
    """One head is scaled."""
    attention = layer(VIDEO).double()
    x = draw(2, 8, 32)
    q, k, v = (linear(x) for linear in (attention.query, attention.key, attention.value))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    torch.testing.assert_close(attention(x), expected, rtol=1e-11, atol=1e-12)


def residual(blocks, x):
    for block in blocks:
        x = x + block.sa(x)
        x = x + block.ffwd(x)
    return x


COMPOSED = {  # from the modules of a layer and its input
    "many-heads": lambda layer, x: torch.cat([head(x) for head in layer.heads], dim=2),
    "feed-forward": lambda layer, x: (layer[0](x) @ layer[1].weight.T + layer[1].bias).clamp(min=0),
    "residual": residual,
    "layer-norm": lambda layer, x: F.layer_norm(layer[:3](x), (32,)),  # three blocks, one norm
}


@pytest.mark.parametrize("stage", COMPOSED)
def test_later_stages_are_composed_of_earlier_modules(stage):
    layer, x = build(stage).layer.double(), draw(2, 8, 32)
    torch.testing.assert_close(layer(x), COMPOSED[stage](layer, x))


PARAMETERS = {  # at the sizes of the video
    "bigram": 65 * 65,
    "average-loops": 65 * 32 + 8 * 32 + 32 * 65 + 65,  # tokens, positions, head
    "average-matrix": 4481,
    "average-softmax": 4481,
    "self-attention": 4481 + 3 * 32 * 32,  # + key, query, value
    "one-head": 4481 + 3072,
    "many-heads": 4481 + 3072,  # four heads of 8 are as many weights as one of 32
    "feed-forward": 4481 + 3072 + 32 * 32 + 32,
    # three times heads, projection, and a feed-forward that is four times wider inside
    "residual": 4481 + 3 * (3072 + 32 * 33 + 128 * 33 + 32 * 129),
    "layer-norm": 41921 + 7 * 2 * 32,  # + two norms in each block and one at the end
    "dropout": 42369,
}


@pytest.mark.parametrize("stage", lecture.STAGES)
def test_every_stage_has_the_interface_of_the_reference(stage):
    """Logits, a loss that ignores -1, and weights that depend on the seed alone."""
    model = build(stage)
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[stage]
    assert (model.config.vocab_size, model.config.block_size) == (65, 8)

    tokens, targets = draw_tokens(2, 5, vocab_size=65), draw_tokens(2, 5, 1, vocab_size=65)
    logits, loss = model(tokens)
    assert logits.shape == (2, 5, 65)
    assert loss is None
    targets[0, 1] = targets[1] = -1
    same_logits, loss = model(tokens, targets)
    assert torch.equal(same_logits, logits)
    counted = [0, 2, 3, 4]
    chosen = logits[0].double().log_softmax(-1)[counted, targets[0, counted]]
    torch.testing.assert_close(loss.double(), -chosen.mean(), rtol=1e-6, atol=0)
    loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())

    for other in (model, build(stage, seed=1)):
        torch.manual_seed(2)
        other.initialise()
        assert not torch.equal(other(tokens)[0], logits)
    assert torch.equal(other(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize("stage", list(lecture.STAGES)[:-1])
def test_stages_before_the_last_ignore_the_switches_of_the_config(stage):
    plain, modern = build(stage, LECTURE), build(stage, CONFIGS["modern"])
    assert modern.config == plain.config == LECTURE
    assert list(modern.state_dict()) == list(plain.state_dict())
    assert all(map(torch.equal, modern.parameters(), plain.parameters()))
