"""The encoder and the cross-attention equal PyTorch's layers, and masks hide what they should."""

from dataclasses import replace

import torch
import torch.nn as nn

from gpt.models import reference
from tests.gpt.configs import LECTURE, draw_tokens, randomise

S, T = 3, 7  # the source, and source and text
CONFIG = replace(LECTURE, source_size=S, qkv_bias=True)


def torch_layer(kind, block):
    """PyTorch's layer with the weights of a block of the reference."""
    C, H = CONFIG.n_embd, CONFIG.n_head
    options = {"dropout": 0.0, "activation": "relu", "batch_first": True, "norm_first": True}
    layer = kind(C, H, 4 * C, layer_norm_eps=CONFIG.norm_eps, **options).double()
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
