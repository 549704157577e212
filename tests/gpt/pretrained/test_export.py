"""Exported runs in transformers."""

from dataclasses import replace

import pytest
import torch

import kernels
from gpt.data import huggingface_tokenizer as huggingface
from gpt.data.tokenizers import ByteTokenizer, CharTokenizer, GPT2Tokenizer, read_tokenizer
from gpt.models.packed import GPT
from gpt.pretrained import export
from gpt.pretrained.init_from import open_source
from gpt.runs.portable_state import portable_state
from tests.gpt.configs import CONFIGS, GPT2, LECTURE, draw_tokens, randomise
from tests.gpt.data.test_tokenizers import small_gpt2
from tests.runs import save_weights

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TEXT = "to be, \n\n or  not\tto be"
SMALL = replace(LECTURE, **GPT2, block_size=64)
TOKENIZERS = {
    "ascii": CharTokenizer.of(TEXT),
    "char": CharTokenizer.of(TEXT + "é\U0001f600"),
    "byte": ByteTokenizer(),
    "gpt2": GPT2Tokenizer(),
    "huggingface": huggingface.of_ranks({**small_gpt2().ranks, b"be": 264}, 300),
}


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Save a run with random weights; returns the model and the name of the run."""
    monkeypatch.setattr(GPT2Tokenizer, "_encoding", small_gpt2()._encoding)
    (tmp_path / "run").mkdir()

    def save(config, tokenizer=TOKENIZERS["ascii"], scale=0.3):
        model = GPT(config, kernels.load("torch")).eval()
        with torch.no_grad():
            for weight in randomise(model).parameters():
                weight.mul_(scale / 0.3)
        save_weights(tmp_path / "run", config, tokenizer, portable_state(model))
        return model, str(tmp_path / "run")

    return save


@torch.no_grad()
def logits(model, tokens):
    result = model(tokens)
    return result[0] if isinstance(result, tuple) else result.logits


def test_the_weights_of_transformers_come_back(tmp_path):
    sizes = {"vocab_size": 11, "n_positions": 8, "n_layer": 2, "n_head": 2, "n_embd": 32}
    config = transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)
    gpt2 = randomise(transformers.GPT2LMHeadModel(config))
    gpt2.save_pretrained(tmp_path / "hf")
    source = open_source(str(tmp_path / "hf"))
    (tmp_path / "run").mkdir()
    save_weights(tmp_path / "run", source.config, TOKENIZERS["ascii"], source.weights())
    assert export.main([str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    back = type(gpt2).from_pretrained(tmp_path / "back")
    assert back.state_dict().keys() == gpt2.state_dict().keys()
    for name, tensor in gpt2.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_transformers_generates_from_a_run(kind, save, tmp_path, capsys):
    tokenizer = TOKENIZERS[kind]
    sizes = {"vocab_size": tokenizer.vocab_size + 3, "n_inner": 24, "norm_eps": 0.1}
    options = {"bias": False, "tied_head": False, "activation": "gelu"} if kind == "char" else {}
    config = replace(SMALL, **sizes, **options)
    model, run = save(config, tokenizer)
    assert export.main([run, str(tmp_path / "hf")]) == 0
    assert "transformers.pipeline('text-generation'" in capsys.readouterr().out
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    tokens = draw_tokens(3, 8, vocab_size=config.vocab_size)
    assert (logits(theirs, tokens) - logits(model, tokens)).abs().max() < 1e-4
    automatic = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    tokens = tokenizer.encode(TEXT)
    assert automatic(TEXT).input_ids == tokens.tolist()
    assert automatic.decode(tokens) == TEXT
    assert automatic.eos_token_id == theirs.generation_config.eos_token_id == tokenizer.end_of_text
    if kind != "gpt2":  # a few of its merges
        assert read_tokenizer(tmp_path / "hf").to_json() == tokenizer.to_json()
    generate = transformers.pipeline("text-generation", str(tmp_path / "hf"))
    (made,) = generate(TEXT, max_new_tokens=8, do_sample=False)
    assert made["generated_text"].startswith(TEXT)


@pytest.mark.parametrize(
    "name", ["lecture", "rope", "rms_norm", "qk_norm", "softcap", "grouped", "window", "documents"]
)
def test_features_that_gpt2_lacks_are_not_exported(name, save, tmp_path, capsys):
    _, run = save(CONFIGS[name])
    assert export.main([run, str(tmp_path / "back")]) == 2
    assert "GPT-2 has no" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()
