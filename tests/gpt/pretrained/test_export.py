"""Exported runs in transformers."""

import re
from dataclasses import replace

import pytest
import torch

import kernels
from gpt.data.tokenizers import ByteTokenizer, CharTokenizer, GPT2Tokenizer
from gpt.models.packed import GPT
from gpt.pretrained import export, tokenizer_json
from gpt.pretrained.init_from import load_pretrained
from gpt.runs.portable_state import portable_state
from tests.gpt.configs import CONFIGS, GPT2, LECTURE, draw_tokens, randomise
from tests.gpt.data.test_tokenizers import small_gpt2
from tests.gpt.pretrained.test_init_from import logits
from tests.gpt.pretrained.test_tokenizer_json import digest_of
from tests.runs import save_weights

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TEXT = "to be , \n\n or  not\tto be"
SMALL = replace(LECTURE, **GPT2, block_size=80)
TOKENIZERS = {
    "ascii": CharTokenizer(CharTokenizer.of(TEXT).characters[::-1]),  # not sorted
    "char": CharTokenizer.of(TEXT + "é\U0001f600"),
    "byte": ByteTokenizer(),
    "gpt2": GPT2Tokenizer(),
}


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Save a run with random weights and a padded vocabulary; returns the model and its name."""
    monkeypatch.setattr(GPT2Tokenizer, "_encoding", small_gpt2()._encoding)
    digest = digest_of(tokenizer_json.equal_of(small_gpt2()))
    monkeypatch.setattr(tokenizer_json, "GPT2_SHA256", digest)
    (tmp_path / "run").mkdir()

    def save(config, tokenizer=TOKENIZERS["ascii"]):
        config = replace(config, vocab_size=tokenizer.vocab_size + 3)
        model = randomise(GPT(config, kernels.load("torch"))).eval()
        save_weights(tmp_path / "run", config, tokenizer, portable_state(model))
        return model, str(tmp_path / "run")

    return save


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_transformers_generates_from_a_run(kind, save, tmp_path, capsys):
    tokenizer = TOKENIZERS[kind]
    options = {"bias": False, "tied_head": False, "activation": "gelu"} if kind == "char" else {}
    model, run = save(replace(SMALL, n_inner=24, norm_eps=0.1, **options), tokenizer)
    assert export.main([run, str(tmp_path / "hf")]) == 0
    assert "transformers.pipeline('text-generation'" in capsys.readouterr().out
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    tokens = draw_tokens(3, 8, vocab_size=model.config.vocab_size)
    assert (logits(theirs, tokens) - logits(model, tokens)).abs().max() < 1e-4
    again, read, _ = load_pretrained(str(tmp_path / "hf"), kernels.load("torch"), "cpu")
    assert torch.equal(logits(again, tokens), logits(model, tokens))
    automatic = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    tokens = tokenizer.encode(TEXT)
    assert automatic(TEXT).input_ids == tokens.tolist()
    assert automatic.decode(tokens) == TEXT
    assert automatic.eos_token_id == theirs.generation_config.eos_token_id == tokenizer.end_of_text
    assert read.to_json() == tokenizer.to_json()
    generate = transformers.pipeline("text-generation", str(tmp_path / "hf"))
    (made,) = generate(TEXT, max_new_tokens=8, do_sample=False)
    assert made["generated_text"].startswith(TEXT)


LACKED = {"lecture": "head_bias", "softcap": "logit_softcap", "documents": "document_mask"}
LACKED |= {"grouped": "n_kv_head"} | {n: n for n in ("rope", "rms_norm", "qk_norm", "window")}


@pytest.mark.parametrize("name", LACKED)
def test_what_gpt2_lacks_is_not_exported(name, save, tmp_path, capsys):
    _, run = save(CONFIGS[name])
    assert export.main([run, str(tmp_path / "hf")]) == 2
    assert re.search(f"GPT-2 has no .*{LACKED[name]}", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
