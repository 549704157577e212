"""nanoGPT's ckpt.pt: its logits, and its run, which continues with nanoGPT's losses and weights."""

import math
import re

import pytest
import torch
import torch.nn as nn
from torch.nn import functional as F

import kernels
from gpt import UserError
from gpt.data.corpus import open_data
from gpt.models.packed import GPT
from gpt.pretrained.gpt2 import packed_from_gpt2
from gpt.pretrained.init_from import open_source
from gpt.pretrained.nanogpt import continue_run
from gpt.runs import checkpoint
from gpt.runs.portable_state import load_portable_state
from tests.gpt.configs import draw_tokens
from tests.runs import losses, write_text
from train import main

SIZES = {"vocab_size": 12, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
LAYERS = {"ln_1": (16,), "attn.c_attn": (48, 16), "attn.c_proj": (16, 16)}
LAYERS |= {"ln_2": (16,), "mlp.c_fc": (64, 16), "mlp.c_proj": (16, 64)}
CONFIG = {"learning_rate": 1e-2, "decay_lr": True, "warmup_iters": 8, "lr_decay_iters": 11}
CONFIG |= {"min_lr": 1e-3, "grad_clip": 1.0, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99}
CONFIG |= {"batch_size": 4, "gradient_accumulation_steps": 2, "max_iters": 12, "dataset": "abc"}
CONFIG |= {"eval_interval": 5, "eval_iters": 2, "log_interval": 1, "device": "cpu"}
CONFIG |= {"dtype": "float16", "compile": True}


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


def logits(parameters, tokens, gelu="none"):
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
        x = x + F.linear(F.gelu(y, approximate=gelu), *of(h + "mlp.c_proj"))
    return F.linear(F.layer_norm(x, (16,), *of("ln_f")), of("wte")[0])


def save(folder, parameters, arguments, **more):
    folder.mkdir()
    state = {f"_orig_mod.{name}": tensor.detach() for name, tensor in parameters.items()}
    state["_orig_mod.lm_head.weight"] = state["_orig_mod.transformer.wte.weight"]
    content = {"model": state, "model_args": SIZES | arguments, "config": CONFIG, **more}
    torch.save(content, folder / "ckpt.pt")


def test_an_old_file_has_the_logits_of_nanogpt(tmp_path):
    theirs = parameters(bias=True)
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8).tril()}
    save(tmp_path / "out", theirs | masks, {"dropout": 0.1})  # before `bias`, of 2023-01-27
    source = open_source(str(tmp_path / "out"))
    ours = GPT(source.config, kernels.load("torch")).eval()
    load_portable_state(ours, source.weights())
    tokens = draw_tokens(3, 8, vocab_size=12)
    assert (ours(tokens)[0] - logits(theirs, tokens, "tanh")).abs().max() < 1e-5
    assert source.config.dropout == source.config.embedding_dropout_p == 0.1


def train_nanogpt(parameters, data, steps, optimizer=None):
    """nanoGPT's loop over the batches of our runs; returns the losses and the optimizer."""
    if optimizer is None:
        matrices = {"params": [p for p in parameters.values() if p.dim() == 2], "weight_decay": 0.1}
        vectors = {"params": [p for p in parameters.values() if p.dim() == 1], "weight_decay": 0.0}
        optimizer = torch.optim.AdamW([matrices, vectors], betas=(0.9, 0.99))
    found = []
    for step in steps:
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 8) / (11 - 8)))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (step + 1) / 9 if step < 8 else 1e-3 + cosine * (1e-2 - 1e-3)
        x, y = data.batch(1337, 8 * step, 8, 8)
        loss = F.cross_entropy(logits(parameters, x).flatten(0, 1), y.flatten())  # both passes
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found, optimizer


@pytest.mark.parametrize("bias", [True, False])
def test_resume_continues_the_run_of_nanogpt(tmp_path, capsys, bias):
    text, out = write_text(tmp_path), tmp_path / "out"
    data, theirs = open_data(str(text), "", "char"), parameters(bias)
    optimizer = train_nanogpt(theirs, data, range(6))[1]
    progress = {"iter_num": 6, "best_val_loss": torch.tensor(2.5)}
    arguments = {"bias": bias, "dropout": 0.0}
    save(out, theirs, arguments, optimizer=optimizer.state_dict(), **progress)
    content = (out / "ckpt.pt").read_bytes()
    expected = train_nanogpt(theirs, data, range(6, 12), optimizer)[0]
    assert main(["--resume", f"--out-dir={out}", f"--data={text}", "--device=cpu"]) == 0
    assert "nanoGPT's run at step 6, is now last.json" in capsys.readouterr().out
    assert losses(out) == pytest.approx(expected, rel=1e-6)
    right = packed_from_gpt2(theirs)
    for name, weight in checkpoint.load(out, "last")[1]["weights"].items():
        difference = (weight - right[name]).abs()
        if name.endswith("qkv.bias"):  # only rounding moves the biases of keys
            difference = difference[[*range(16), *range(32, 48)]]
        assert difference.max() < 1e-5, name
    assert (out / "ckpt.pt").read_bytes() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iter_num": -1}, "does not hold the state of a run"),
        ({"optimizer": {}}, "does not hold a run of nanoGPT"),
        ({"config": {**CONFIG, "learning_rate": "high"}}, "learning_rate is 'high'"),
        ({"config": {**CONFIG, "dataset": "../text"}}, "--data unknown: no such file"),
        ({"config": {**CONFIG, "dataset": "other"}}, "other has 2 tokens"),
        ({"model_args": {**SIZES, "use_rmsnorm": True}}, "its model_args are not"),
    ],
)
def test_a_damaged_or_foreign_run_is_refused(tmp_path, monkeypatch, change, message):
    text, theirs = write_text(tmp_path), parameters(bias=True)
    (tmp_path / "other").write_text("01" * 40)
    monkeypatch.chdir(tmp_path)
    optimizer = train_nanogpt(theirs, open_data(str(text), "", "char"), [0])[1].state_dict()
    whole = {"optimizer": optimizer, "iter_num": 1, "best_val_loss": 2.5, **change}
    save(tmp_path / "out", theirs, {"bias": True, "dropout": 0.0}, **whole)
    with pytest.raises(UserError, match=re.escape(message)):
        continue_run(tmp_path / "out", {})
    assert not (tmp_path / "out" / "last.json").exists()
