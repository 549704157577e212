"""Pretrained weights: GPT-2's in the layout of transformers, a run's, the lecture's."""

import json
from dataclasses import replace

import pytest
import torch

import kernels
from gpt import UserError
from gpt.data.tokenizers import CharTokenizer
from gpt.models.packed import GPT
from gpt.models.reference import GPT as Reference
from gpt.pretrained.init_from import defaults_of, initialise_from, open_source
from gpt.runs.portable_state import load_portable_state, portable_state
from tests.gpt.configs import LECTURE, draw_tokens, randomise
from tests.runs import metrics, record, run, save_weights, tensor_files

OPS = kernels.load("torch")
TOKENIZER = CharTokenizer("abcdefghijk")


def packed_model(config, weights=None):
    model = GPT(config, OPS).eval()
    if weights is not None:
        load_portable_state(model, weights)
    return model


def logits(model):
    with torch.no_grad():
        result = model(draw_tokens(3, 8))
    return result[0] if isinstance(result, tuple) else result.logits


def save(folder, config, state):
    """A run with these weights; returns its name."""
    (folder / "run").mkdir()
    save_weights(folder / "run", config, TOKENIZER, state)
    return str(folder / "run")


# --- GPT-2 ----------------------------------------------------------------------------------------


@pytest.fixture
def theirs(tmp_path):
    """A GPT-2 of transformers with random weights, and the folder that it is saved in."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"vocab_size": 11, "n_positions": 8, "n_layer": 2, "n_head": 2, "n_embd": 32}
    tokens = {"bos_token_id": None, "eos_token_id": None}
    config = transformers.GPT2Config(**sizes, **tokens, attn_implementation="eager")
    gpt2 = randomise(transformers.GPT2LMHeadModel(config)).eval()
    gpt2.save_pretrained(tmp_path / "hf")
    return gpt2, str(tmp_path / "hf")


def test_gpt2_has_the_logits_of_transformers(theirs):
    gpt2, folder = theirs
    source = open_source(folder)
    expected, actual = logits(gpt2), logits(packed_model(source.config, source.weights()))
    assert expected.std() > 0.5
    assert (actual - expected).abs().max() < 1e-4


# --- runs, and the lecture's file -----------------------------------------------------------------


def test_shared_characters_keep_their_weights(tmp_path):
    old = randomise(packed_model(LECTURE))
    name = save(tmp_path, LECTURE, portable_state(old))
    new = randomise(packed_model(replace(LECTURE, vocab_size=4)), seed=1)
    fresh = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    said = initialise_from(name, new, CharTokenizer("bkyz"))
    assert said.endswith("2 tokens kept their weights, 2 are new")
    for name, tensor in new.state_dict().items():
        before = old.state_dict()[name]
        if name.startswith(("token_embedding_table", "lm_head")):
            before = torch.cat((before[[1, 10]], fresh[name][2:]))
        assert torch.equal(tensor, before)


def test_finetuning_starts_with_the_weights_of_the_run(tmp_path, capsys):
    (tmp_path / "other").write_text("jihgfedcba xyz\n" * 40)
    assert run(tmp_path / "first", "--max-iters=30", "--eval-interval=10") == 0
    more = [f"--data={tmp_path / 'other'}", "--max-iters=2"]
    begins = [f"--init-from={tmp_path / 'first'}", "--block-size=6"]
    assert run(tmp_path / "second", *more, *begins) == 0
    assert "12 tokens kept their weights, 3 are new" in capsys.readouterr().out
    assert record(tmp_path / "second")["train"]["model"]["block_size"] == 6
    # the same data again: the loss is unchanged
    assert run(tmp_path / "third", begins[0], "--max-iters=0") == 0
    best = record(tmp_path / "first", "best")["val_loss"]
    assert metrics(tmp_path / "third")[0]["val_loss"] == pytest.approx(best, abs=1e-6)
    assert (
        tensor_files(tmp_path / "third")["weights"]
        == tensor_files(tmp_path / "first", "best")["weights"]
    )


def test_the_lecture_s_state_dict(tmp_path):
    lecture = randomise(Reference(LECTURE)).eval()
    name = str(tmp_path / "model.pt")
    torch.save(lecture.state_dict(), name)
    assert open_source(name).config == LECTURE
    ours = packed_model(LECTURE)
    initialise_from(name, ours, TOKENIZER)
    assert (logits(ours) - logits(lecture)).abs().max() < 1e-5
    with pytest.raises(UserError, match="tokenizer is not that of --init-from"):
        initialise_from(name, ours, CharTokenizer("abc"))


def test_a_missing_or_unsupported_source_is_rejected(tmp_path):
    (tmp_path / "text").write_text("not a state dict")
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "model.safetensors").touch()
    (tmp_path / "llama" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for name, message in (
        ("nothing", "no such run or file"),
        ("text", "is not a state dict of the lecture's model"),
        ("llama", "model_type is 'llama'"),
    ):
        with pytest.raises(UserError, match=message):
            defaults_of(str(tmp_path / name))
