"""nanoGPT's ckpt.pt: its logits."""

import pytest
import torch
import torch.nn as nn
from torch.nn import functional as F

import kernels
from gpt import UserError
from gpt.models.packed import GPT
from gpt.pretrained.init_from import open_source
from gpt.runs.portable_state import load_portable_state
from tests.gpt.configs import draw_tokens

SIZES = {"vocab_size": 12, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
LAYERS = {"ln_1": (16,), "attn.c_attn": (48, 16), "attn.c_proj": (16, 16)}
LAYERS |= {"ln_2": (16,), "mlp.c_fc": (64, 16), "mlp.c_proj": (16, 64)}


def parameters(bias):
    """nanoGPT's parameters in their order, with random values."""
    blocks = {f"h.{layer}.{name}": LAYERS[name] for layer in range(2) for name in LAYERS}
    shapes = {"wte": (12, 16), "wpe": (8, 16), **blocks, "ln_f": (16,)}
    torch.manual_seed(0)
    drawn = {}
    for name, shape in shapes.items():
        for kind in ("weight", "bias") if bias and name not in ("wte", "wpe") else ("weight",):
            size = shape if kind == "weight" else shape[:1]
            drawn[f"transformer.{name}.{kind}"] = nn.Parameter(0.3 * torch.randn(size))
    return drawn


def logits(parameters, tokens):
    """nanoGPT's model, without dropout."""

    def of(name):
        name = f"transformer.{name}"
        return parameters[f"{name}.weight"], parameters.get(f"{name}.bias")

    x = F.embedding(tokens, of("wte")[0]) + of("wpe")[0][: tokens.shape[1]]
    for h in ("h.0.", "h.1."):
        qkv = F.linear(F.layer_norm(x, (16,), *of(h + "ln_1")), *of(h + "attn.c_attn"))
        heads = qkv.unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        y = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        x = x + F.linear(y, *of(h + "attn.c_proj"))
        y = F.linear(F.layer_norm(x, (16,), *of(h + "ln_2")), *of(h + "mlp.c_fc"))
        x = x + F.linear(F.gelu(y), *of(h + "mlp.c_proj"))
    return F.linear(F.layer_norm(x, (16,), *of("ln_f")), of("wte")[0])


def save(folder, parameters, **content):
    folder.mkdir()
    state = {f"_orig_mod.{name}": tensor.detach() for name, tensor in parameters.items()}
    state["_orig_mod.lm_head.weight"] = state["_orig_mod.transformer.wte.weight"]
    torch.save({"model": state, "config": {"dataset": "abc"}, **content}, folder / "ckpt.pt")


@pytest.mark.parametrize("bias", [True, False])
def test_a_file_has_the_logits_of_nanogpt(tmp_path, bias):
    theirs = parameters(bias)
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8).tril()}
    arguments = SIZES | {"bias": bias, "dropout": 0.1}
    save(tmp_path / "out", theirs | masks, model_args=arguments)
    source = open_source(str(tmp_path / "out"))
    ours = GPT(source.config, kernels.load("torch")).eval()
    load_portable_state(ours, source.weights())
    tokens = draw_tokens(3, 8, vocab_size=12)
    assert (ours(tokens)[0] - logits(theirs, tokens)).abs().max() < 1e-5
    assert source.config.dropout == source.config.embedding_dropout_p == 0.1


def test_another_model_is_refused(tmp_path):
    save(tmp_path / "out", parameters(bias=True), model_args=SIZES | {"use_rmsnorm": True})
    with pytest.raises(UserError, match="its model_args are not bias, block_size"):
        open_source(str(tmp_path / "out"))
