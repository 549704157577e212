"""The encoder and the cross-attention equal PyTorch's layers, and masks hide what they should."""

from dataclasses import replace

import pytest
import torch
import torch.nn as nn

from gpt.config.model import NORM_EPS
from gpt.models import reference
from tests.gpt.configs import ENCODERS, LECTURE, draw_tokens, randomise

S, T = 3, 7  # the source, and source and text
CONFIG = replace(LECTURE, source_size=S, qkv_bias=True)


def torch_layer(kind, block):
    """PyTorch's layer with the weights of a block of the reference."""
    C, H = CONFIG.n_embd, CONFIG.n_head
    options = {"dropout": 0.0, "activation": "relu", "batch_first": True, "norm_first": True}
    layer = kind(C, H, 4 * C, layer_norm_eps=NORM_EPS, **options).double()
    attentions = [(layer.self_attn, block.sa)]
    norms = [(layer.norm1, block.ln1), (layer.norm2, block.ln2)]
    if kind is nn.TransformerDecoderLayer:
        attentions.append((layer.multihead_attn, block.ca))
        norms = [(layer.norm1, block.ln1), (layer.norm2, block.ln3), (layer.norm3, block.ln2)]
    with torch.no_grad():
        for theirs, ours in attentions:
            for name in ("weight", "bias"):
                parts = [
                    torch.cat([getattr(getattr(head, part), name) for head in ours.heads])
                    for part in ("query", "key", "value")
                ]
                getattr(theirs, f"in_proj_{name}").copy_(torch.cat(parts))
            theirs.out_proj.load_state_dict(ours.proj.state_dict())
        for theirs, ours in norms:
            theirs.load_state_dict(ours.state_dict())
        layer.linear1.load_state_dict(block.ffwd.net[0].state_dict())
        layer.linear2.load_state_dict(block.ffwd.net[2].state_dict())
    return layer.train()  # in evaluation PyTorch uses other kernels


def test_the_reference_equals_pytorch_s_transformer():
    model = randomise(reference.GPT(CONFIG)).double()
    tokens = draw_tokens(2, T)
    place = torch.arange(T)
    x = model.token_embedding_table(tokens) + model.position_embedding_table(place)
    source, x = x[:, :S], x[:, S:]
    for block in model.blocks.encoder:
        source = torch_layer(nn.TransformerEncoderLayer, block)(source)
    source = model.blocks.norm(source)
    mask = nn.Transformer.generate_square_subsequent_mask(T - S, dtype=torch.float64)
    for block in model.blocks.decoder:
        layer = torch_layer(nn.TransformerDecoderLayer, block)
        x = layer(x, source, tgt_mask=mask)
    expected = model.lm_head(model.ln_f(x))
    logits, _ = model(tokens)
    assert (logits[:, S:] - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("name", ENCODERS)
def test_the_source_is_visible_to_all_and_the_text_is_causal(name):
    model = randomise(reference.GPT(ENCODERS[name]))
    tokens = draw_tokens(2, T)
    before, _ = model(tokens)
    for t in range(T):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % LECTURE.vocab_size
        after, _ = model(changed)
        differs = (after != before).any(-1).all(0)  # at each position
        assert differs.tolist() == [t < S or place >= t for place in range(T)]


def test_cross_attention_has_no_rotary_positions():
    config = ENCODERS["modern encoder"]
    model = randomise(reference.GPT(config)).double()
    x = torch.randn(1, T, config.n_embd, dtype=torch.float64)
    source = torch.randn(1, S, config.n_embd, dtype=torch.float64)
    cross = model.blocks.decoder[0].ca
    # so the order of the source does not matter
    assert torch.allclose(cross(x, source), cross(x, source.flip(1)), atol=1e-12)
    assert not torch.allclose(cross(x, source), cross(x, source * 2), atol=1e-3)
