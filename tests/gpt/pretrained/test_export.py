"""Exported runs in transformers."""

import re
from dataclasses import replace

import pytest
import torch

from gpt.data.tokenizers import ByteTokenizer, CharTokenizer, GPT2Tokenizer
from gpt.models.packed import GPT
from gpt.pretrained import export
from gpt.pretrained.init_from import open_source
from gpt.runs.portable_state import load_portable_state, portable_state
from kernels.torch_ops import OPS
from tests.gpt.configs import CONFIGS, GPT2, LECTURE, draw_tokens, randomise
from tests.gpt.pretrained.test_init_from import logits
from tests.runs import save_weights

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TOKENIZERS = {"char": CharTokenizer("ab \n"), "byte": ByteTokenizer(), "gpt2": GPT2Tokenizer()}


@pytest.fixture
def save(tmp_path):
    """Save a run with random weights and a padded vocabulary; returns the model and its name."""
    (tmp_path / "run").mkdir()

    def save(config, tokenizer=TOKENIZERS["char"]):
        config = replace(config, vocab_size=tokenizer.vocab_size + 3)
        model = randomise(GPT(config, OPS)).eval()
        save_weights(tmp_path / "run", config, tokenizer, portable_state(model))
        return model, str(tmp_path / "run")

    return save


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_transformers_computes_what_the_run_does(kind, save, tmp_path, capsys):
    tokenizer = TOKENIZERS[kind]
    options = {"bias": False, "tied_head": False, "activation": "gelu"} if kind == "char" else {}
    config = replace(LECTURE, **GPT2 | options, n_inner=24, norm_eps=0.1, block_size=80)
    model, run = save(config, tokenizer)
    assert export.main([run, str(tmp_path / "hf")]) == 0
    assert f"GPT2LMHeadModel.from_pretrained('{tmp_path / 'hf'}')" in capsys.readouterr().out
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    tokens = draw_tokens(3, 8, vocab_size=model.config.vocab_size)
    assert (logits(theirs, tokens) - logits(model, tokens)).abs().max() < 1e-4
    assert theirs.generation_config.eos_token_id == tokenizer.end_of_text
    source = open_source(str(tmp_path / "hf"))
    assert source.tokenizer is None
    again = GPT(source.config, OPS).eval()
    load_portable_state(again, source.weights())
    assert torch.equal(logits(again, tokens), logits(model, tokens))


LACKED = {"lecture": "head_bias", "softcap": "logit_softcap", "documents": "document_mask"}
LACKED |= {"grouped": "n_kv_head"} | {n: n for n in ("rope", "rms_norm", "qk_norm", "window")}


@pytest.mark.parametrize("name", LACKED)
def test_what_gpt2_lacks_is_not_exported(name, save, tmp_path, capsys):
    _, run = save(CONFIGS[name])
    assert export.main([run, str(tmp_path / "hf")]) == 2
    assert re.search(f"GPT-2 has no .*{LACKED[name]}", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
