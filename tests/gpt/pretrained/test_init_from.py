"""Pretrained weights: GPT-2's in the layout of transformers, a run's, the lecture's."""

import hashlib
import json
import math
import pickle
import re
import resource
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model

import kernels
from gpt import UserError
from gpt.data.tokenizers import CharTokenizer, GPT2Tokenizer
from gpt.models.packed import GPT
from gpt.models.reference import GPT as Reference
from gpt.pretrained import gpt2
from gpt.pretrained.init_from import defaults_of, initialise_from, open_source
from gpt.runs import checkpoint
from gpt.runs.portable_state import load_portable_state
from tests.gpt.configs import CONFIGS, LECTURE, draw_tokens, randomise
from tests.runs import metrics, record, run

OPS = kernels.load("torch")
TOKENIZER = CharTokenizer("abcdefghijk")
SIZES = {"vocab_size": 11, "n_positions": 8, "n_layer": 2, "n_head": 2, "n_embd": 32}
BIN, TABLE = "pytorch_model.bin", "token_embedding_table.weight"


def folder_of(**config):
    """The files of a GPT-2 but for its weights and its tokenizer."""
    return {"config.json": {"model_type": "gpt2", **SIZES, **config}}


def packed_model(config, weights=None):
    model = GPT(config, OPS).eval()
    if weights is not None:
        load_portable_state(model, weights)
    return model


@torch.no_grad()
def logits(model, tokens):
    result = model(tokens)
    return result[0] if isinstance(result, tuple) else result.logits


def write(folder, files):
    """Write texts as they are, .json, and anything else by torch.save."""
    for name, content in files.items():
        if name.endswith(".json"):
            content = json.dumps(content)
        if isinstance(content, str):
            (folder / name).write_text(content)
        else:
            torch.save(content, folder / name)


# --- transformers ---------------------------------------------------------------------------------


FORMS = {
    "whole": lambda model, folder: model.save_pretrained(folder),
    "without head": lambda model, folder: model.transformer.save_pretrained(folder),
    "bfloat16": lambda model, folder: model.bfloat16().save_pretrained(folder),
    "float16": lambda model, folder: model.half().save_pretrained(folder),
    "pickle": lambda model, folder: write(folder, {BIN: model.state_dict()}),
    "head alone": lambda model, folder: save_model(model, str(folder / "model.safetensors")),
}
ACTIVATIONS = ("gelu", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "relu", "relu2")


@pytest.mark.parametrize(
    ("form", "options"),
    [
        *((form, {}) for form in FORMS),
        ("whole", {"n_inner": 48, "layer_norm_epsilon": 0.1, "tie_word_embeddings": False}),
        *(("whole", {"activation_function": name}) for name in ACTIVATIONS),
    ],
)
def test_a_folder_has_the_logits_of_transformers(tmp_path, form, options):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    options = {**SIZES, "bos_token_id": None, "eos_token_id": None, **options}
    config = transformers.GPT2Config(**options, attn_implementation="eager")
    theirs = randomise(transformers.GPT2LMHeadModel(config)).eval()
    config.save_pretrained(tmp_path)
    FORMS[form](theirs, tmp_path)
    source = open_source(str(tmp_path))
    tokens, ours = draw_tokens(3, 8), packed_model(source.config, source.weights())
    expected, actual = logits(theirs.float(), tokens), logits(ours, tokens)
    assert expected.std() > 0.3
    assert (actual - expected).abs().max() < 1e-5


def test_a_name_of_the_hub_is_answered_by_the_command_that_downloads_it(tmp_path):
    for name, command in {
        "gpt2-xl": "hf download openai-community/gpt2-xl --revision 15ea56dee5df4983c59b25385738",
        "someone/small": "hf download someone/small .* --include .*.json. --include ",
    }.items():
        with pytest.raises(UserError, match=f"--init-from {name}: no such file .* by: {command}"):
            defaults_of(name)
    with pytest.raises(UserError, match="has no weights in one file"):
        defaults_of(str(tmp_path))


def test_the_tokenizer_of_a_folder_is_gpt2_s_or_refused(tmp_path, monkeypatch):
    vocab, merges = {"b": 1, "a": 0, "ab": 2}, ["a b"]
    digest = hashlib.sha256(b"a\nb\nab\na b").hexdigest()
    monkeypatch.setattr(gpt2, "TOKENIZER_SHA256", digest)
    write(tmp_path, folder_of(vocab_size=50257) | {BIN: {}})
    assert open_source(str(tmp_path)).tokenizer is None
    for form in (merges, [["a", "b"]]):  # of older and newer versions
        write(tmp_path, {"tokenizer.json": {"model": {"vocab": vocab, "merges": form}}})
        assert isinstance(open_source(str(tmp_path)).tokenizer, GPT2Tokenizer)
    write(tmp_path, folder_of(vocab_size=7))
    with pytest.raises(UserError, match="the model has 7 tokens, and its tokenizer has 50257"):
        open_source(str(tmp_path))
    write(tmp_path, {"tokenizer.json": {"model": {"vocab": vocab, "merges": []}}})
    with pytest.raises(UserError, match="is not of GPT-2's tokenizer"):
        open_source(str(tmp_path))


# --- runs, and the lecture's file -----------------------------------------------------------------


def test_finetuning_starts_with_the_weights_of_the_run(tmp_path, capsys):
    (tmp_path / "other").write_text("jihgfedcba !yz\n" * 40)
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert run(first) == 0
    begins = [f"--init-from={first}", "--max-iters=0"]
    assert run(second, *begins, f"--data={tmp_path / 'other'}", "--block-size=6") == 0
    assert "12 tokens kept their weights, 3 are new" in capsys.readouterr().out
    old, new = (checkpoint.load(folder, "best")[1]["weights"] for folder in (first, second))
    for name, weight in old.items():
        if name.startswith(("token_embedding_table", "lm_head")):
            assert torch.equal(new[name][[0, 1, *range(3, 13)]], weight)  # \n, space, a to j
        else:
            assert torch.equal(new[name], weight[:6] if name.startswith("position") else weight)
    # the same data again: the loss is unchanged
    assert run(third, *begins) == 0
    best = record(first, "best")["val_loss"]
    assert metrics(third)[0]["val_loss"] == pytest.approx(best, abs=1e-6)


WRAPPERS = {
    "plain": lambda state: state,
    "parallel": lambda state: {"module._orig_mod." + name: state[name] for name in state},
    "nested": lambda state: {"model_state_dict": state, "epoch": 1, "loss": 0.5},
    "bfloat16": lambda state: {name: tensor.bfloat16() for name, tensor in state.items()},
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_state_dict_of_the_lecture(tmp_path, wrap):
    name, theirs = str(tmp_path / "model.pt"), randomise(Reference(LECTURE)).eval()
    torch.save(WRAPPERS[wrap](theirs.state_dict()), name)
    ours = packed_model(LECTURE)
    initialise_from(name, ours, TOKENIZER)
    if wrap == "bfloat16":
        theirs.bfloat16().float()
    tokens = draw_tokens(3, 8)
    assert (logits(ours, tokens) - logits(theirs, tokens)).abs().max() < 1e-5
    other = packed_model(replace(LECTURE, vocab_size=3))
    with pytest.raises(UserError, match="tokenizer is not that of --init-from"):
        initialise_from(name, other, CharTokenizer("abc"))


def test_the_rows_that_pad_a_vocabulary_are_kept(tmp_path, monkeypatch):
    sizes = {"vocab_size": 50304, "n_embd": 4, "n_head": 1, "n_layer": 1}
    config = replace(CONFIGS["gpt2"], **sizes, tied_head=False)
    theirs, ours = (packed_model(config) for _ in range(2))
    monkeypatch.setattr(gpt2, "TOKENIZER_SHA256", hashlib.sha256(b"").hexdigest())
    tokenizer = {"tokenizer.json": {"model": {"vocab": {}, "merges": []}}}
    head = {"tie_word_embeddings": False}
    write(tmp_path, folder_of(**sizes, **head) | tokenizer | {BIN: randomise(theirs).state_dict()})
    line = initialise_from(str(tmp_path), ours, GPT2Tokenizer())
    assert "50257 tokens kept their weights, 0 are new" in line
    assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight)


WEIGHTS = Reference(LECTURE).state_dict()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({BIN: "not a state dict"}, "is damaged, or holds more than tensors and plain values"),
        ({BIN: {}}, "is not a state dict"),
        ({BIN: {TABLE: torch.ones(2, 2).int()}}, f"it has '{TABLE}'"),
        ({BIN: {TABLE: torch.ones(1, 1).expand(10**8, 10**8)}}, "claims more values than it holds"),
        ({BIN: {TABLE: torch.zeros(1, 1).to(torch.float8_e8m0fnu)}}, f"it has '{TABLE}'"),
        ({BIN: {"a\n\x1b": 1}}, "it has 'a\\n\\x1b'"),
        ({BIN: {TABLE: torch.ones(2, 3)}}, f"it begins with '{TABLE}'"),
        ({BIN: {"blocks.0.sa.heads.7.key.weight": torch.ones(2, 2)}}, "of the lecture's model"),
        ({BIN: {**WEIGHTS, "x": torch.ones(1)}}, "the model has no 'x'"),
        ({BIN: {**WEIGHTS, TABLE: torch.ones(11, 32) / 0}}, "is not finite"),
        (folder_of(model_type="llama"), "model_type is 'llama', not gpt2"),
        (folder_of(activation_function=["silu"]), "activation_function is ['silu'], not"),
        (folder_of(scale_attn_by_inverse_layer_idx=True), "inverse_layer_idx is True"),
        (folder_of(n_embd="32"), "n_embd is '32'; it must be of type int"),
        (folder_of(n_embd=2**40), "--n-embd is 1099511627776; it must be"),
        (folder_of(n_embd=2**30, n_positions=2**30), "a matrix of the model has"),
        (folder_of(layer_norm_epsilon=10**400), "--norm-eps is inf; it must be"),
        (folder_of(n_layer=math.inf), "n_layer is inf; it must be of type int"),
        (
            folder_of() | {"tokenizer.json": {"model": {"vocab": ["a"], "merges": 7}}},
            "not of GPT-2's",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path, files, message):
    """tests/test_trust.py has those that would run code."""
    write(tmp_path, {BIN: {"x": torch.ones(1)}, **files})
    with pytest.raises(UserError, match=re.escape(message)):
        initialise_from(str(tmp_path), packed_model(LECTURE), TOKENIZER)


class Large:
    """Its pickle asks for a gigabyte."""

    def __reduce__(self):
        return bytearray, (1 << 30,)


def compressed(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model/data.pkl", bytes(1 << 26))


LARGE = {
    "pickle.bin": lambda path: path.write_bytes(pickle.dumps(Large(), 2)),
    "archive.bin": lambda path: torch.save(Large(), path),
    "compressed.bin": compressed,
    "header.safetensors": lambda path: path.write_bytes(
        (1 << 25).to_bytes(8, "little") + b'{"x": {"dtype": "F32", "shape": [0' + b",0" * (1 << 24)
    ),
}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", LARGE)
def test_a_small_file_cannot_ask_for_much_memory(tmp_path, name):
    LARGE[name](tmp_path / name)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = peak_memory()
    with pytest.raises(UserError, match=f"{name} is damaged, or holds more than tensors"):
        open_source(str(tmp_path / name))
    assert peak_memory() - before < 50_000
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


def peak_memory():
    """In KiB, since the last write to clear_refs."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
