"""Exported runs: in transformers, and as GGUF files in llama.cpp."""

import re
from dataclasses import replace
from itertools import islice

import pytest
import torch

import kernels
from gpt.data import huggingface_tokenizer as huggingface
from gpt.data.tokenizers import ByteTokenizer, CharTokenizer, GPT2Tokenizer, read_tokenizer
from gpt.models.packed import GPT
from gpt.pretrained import export
from gpt.runs.portable_state import portable_state
from tests.gpt.configs import CONFIGS, GPT2, LECTURE, draw_tokens, randomise
from tests.gpt.data.test_tokenizers import small_gpt2
from tests.gpt.pretrained.test_init_from import logits
from tests.runs import save_weights

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
gguf = pytest.importorskip("gguf", reason="gguf is not installed")

TEXT = "to be , \n\n or  not\tto be"
SMALL = replace(LECTURE, **GPT2, block_size=80)
TOKENIZERS = {
    "ascii": CharTokenizer(CharTokenizer.of(TEXT).characters[::-1]),  # not sorted
    "char": CharTokenizer.of(TEXT + "é\U0001f600"),
    "byte": ByteTokenizer(),
    "gpt2": GPT2Tokenizer(),
    "huggingface": huggingface.of_ranks({**small_gpt2().ranks, b"be": 268}, 300),
}


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Save a run with random weights and a padded vocabulary; returns the model and its name."""
    monkeypatch.setattr(GPT2Tokenizer, "_encoding", small_gpt2()._encoding)
    (tmp_path / "run").mkdir()

    def save(config, tokenizer=TOKENIZERS["ascii"], scale=1.0):
        config = replace(config, vocab_size=tokenizer.vocab_size + 3)
        model = randomise(GPT(config, kernels.load("torch"))).eval()
        for weight in model.parameters():
            weight.detach().mul_(scale)
        save_weights(tmp_path / "run", config, tokenizer, portable_state(model))
        return model, str(tmp_path / "run")

    return save


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_transformers_generates_from_a_run(kind, save, tmp_path, capsys):
    tokenizer = TOKENIZERS[kind]
    options = {"bias": False, "tied_head": False, "activation": "gelu"} if kind == "char" else {}
    model, run = save(replace(SMALL, n_inner=24, norm_eps=0.1, **options), tokenizer)
    assert export.main([run, str(tmp_path / "hf")]) == 0
    assert export.main([run, str(tmp_path / "model.gguf")]) == 0
    said = capsys.readouterr().out
    assert "transformers.pipeline('text-generation'" in said
    assert ("computes the run's exact GELU as its approximation" in said) == (kind == "char")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    tokens = draw_tokens(3, 8, vocab_size=model.config.vocab_size)
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


LACKED = {"lecture": "head_bias", "softcap": "logit_softcap", "grouped": "n_kv_head"}
LACKED |= {name: name for name in ("rope", "rms_norm", "qk_norm", "window")}
LACKED |= {"documents": "document_mask"}


@pytest.mark.parametrize(
    ("config", "out", "message"),
    [
        *((CONFIGS[name], "hf", f"GPT-2 has no .*{LACKED[name]}") for name in LACKED),
        (replace(SMALL, activation="relu"), "model.gguf", "llama.cpp's GPT-2 has no relu"),
    ],
)
def test_what_the_other_program_lacks_is_not_exported(config, out, message, save, tmp_path, capsys):
    _, run = save(config)
    assert export.main([run, str(tmp_path / out)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("kind", ["ascii", "char", "byte", "huggingface"])
def test_a_gguf_file_has_the_tokens_and_logits_of_the_run(kind, save, tmp_path, capsys):
    tokenizer, path, tied = TOKENIZERS[kind], tmp_path / "model.gguf", kind != "char"
    model, run = save(replace(SMALL, qkv_bias=tied, tied_head=tied), tokenizer, scale=0.5)
    for out in (path, tmp_path / "hf"):
        assert export.main([run, str(out)]) == 0
    assert ("the file is without one" in capsys.readouterr().out) == (kind == "char")
    reader = gguf.GGUFReader(path)
    if kind != "char":
        assert len(reader.fields["tokenizer.ggml.tokens"].data) == model.config.vocab_size
    found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, model.config.n_layer)
    weights = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").state_dict()
    assert len(found) == len(weights) - tied
    for name in weights.keys() - ({"lm_head.weight"} if tied else set()):
        weight = weights[name].T if ".c_" in name and "weight" in name else weights[name]
        assert torch.equal(found[names.get_name(name, (".weight", ".bias"))], weight), name
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    fp32 = {"type_k": 0, "type_v": 0}
    theirs = llama_cpp.Llama(str(path), n_ctx=80, logits_all=True, verbose=False, **fp32)
    prompt = tokenizer.encode(TEXT).tolist()
    if kind != "char":  # without a vocabulary
        assert theirs.tokenize(TEXT.encode(), add_bos=False) == prompt
        assert theirs.detokenize(prompt).decode() == TEXT
    tokens = [*prompt, *islice(theirs.generate(prompt, temp=0), 50)]
    expected = logits(model, torch.tensor([tokens]))[0, :-1]
    assert expected.std() > 0.1
    assert tokens[len(prompt) :] == expected[len(prompt) - 1 :].argmax(1).tolist()
    # their GELU is a table in fp16
    assert (torch.tensor(theirs.scores[: len(expected)]) - expected).abs().max() < 1e-3
