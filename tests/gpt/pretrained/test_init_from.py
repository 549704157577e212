"""Pretrained weights: GPT-2's in the layout of transformers, a run's, the lecture's."""

import json
from dataclasses import replace

import pytest
import torch

import kernels
from gpt import UserError
from gpt.data.tokenizers import CharTokenizer, GPT2Tokenizer
from gpt.models.packed import GPT
from gpt.models.reference import GPT as Reference
from gpt.pretrained import export
from gpt.pretrained.init_from import defaults_of, initialise_from, open_source
from gpt.runs import checkpoint
from gpt.runs.portable_state import load_portable_state, portable_state
from tests.gpt.configs import CONFIGS, LECTURE, draw_tokens, randomise
from tests.runs import metrics, record, run, tensor_files

OPS = kernels.load("torch")


def packed_model(config):
    return GPT(config, OPS).eval()


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
    return gpt2, tmp_path / "hf"


def save(folder, config, state, tokenizer):
    record = {"step": 0, "train": {"model": config.__dict__}, "tokenizer": tokenizer.to_json()}
    folder.mkdir()
    checkpoint.save(folder, {"best": ("weights",)}, {"weights": state}, record)


def test_gpt2_has_the_logits_of_transformers(theirs):
    gpt2, folder = theirs
    source = open_source(str(folder))
    ours = packed_model(source.config)
    load_portable_state(ours, source.weights())
    tokens = draw_tokens(3, 8)
    with torch.no_grad():
        expected, actual = gpt2(tokens).logits, ours(tokens)[0]
    assert expected.std() > 0.5
    assert (actual - expected).abs().max() < 1e-4


def test_exporting_gpt2_restores_every_bit(theirs, tmp_path, capsys):
    gpt2, folder = theirs
    source = open_source(str(folder))
    save(tmp_path / "run", source.config, source.weights(), GPT2Tokenizer())
    assert export.main([str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    assert "GPT2LMHeadModel.from_pretrained" in capsys.readouterr().out
    back = type(gpt2).from_pretrained(tmp_path / "back").state_dict()
    assert back.keys() == gpt2.state_dict().keys()
    for name, tensor in gpt2.state_dict().items():
        assert torch.equal(back[name], tensor), name


def test_a_model_without_biases_and_with_an_untied_head_is_exported(theirs, tmp_path):
    gpt2, _ = theirs
    config = replace(LECTURE, bias=False, head_bias=False, activation="gelu")
    ours = randomise(packed_model(config))
    save(tmp_path / "run", config, portable_state(ours), CharTokenizer("abcdefghijk"))
    assert export.main([str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    back = type(gpt2).from_pretrained(tmp_path / "back", attn_implementation="eager").eval()
    tokens = draw_tokens(2, 8)
    with torch.no_grad():
        assert (back(tokens).logits - ours(tokens)[0]).abs().max() < 1e-4


@pytest.mark.parametrize(
    "name", ["lecture", "rope", "rms_norm", "qk_norm", "softcap", "grouped", "window"]
)
def test_features_that_gpt2_lacks_are_not_exported(tmp_path, capsys, name):
    config = CONFIGS[name]
    state = portable_state(packed_model(config))
    save(tmp_path / "run", config, state, CharTokenizer("abcdefghijk"))
    assert export.main([str(tmp_path / "run"), str(tmp_path / "back")]) == 2
    assert "GPT-2 has no" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


def test_another_architecture_is_rejected(tmp_path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="its model_type is 'llama'"):
        open_source(str(tmp_path))


# --- runs, and the lecture's file -----------------------------------------------------------------


def test_shared_characters_keep_their_weights(tmp_path):
    config = LECTURE
    old = randomise(packed_model(config))
    save(tmp_path / "run", config, portable_state(old), CharTokenizer("abcdefghijk"))
    new = randomise(packed_model(replace(config, vocab_size=4)), seed=1)
    fresh = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    said = initialise_from(str(tmp_path / "run"), new, CharTokenizer("bkyz"))
    assert said.endswith("2 tokens kept their weights, 2 are new")
    for name, tensor in new.state_dict().items():
        before = old.state_dict()[name]
        if name.startswith(("token_embedding_table", "lm_head")):
            assert torch.equal(tensor[:2], before[[1, 10]])
            assert torch.equal(tensor[2:], fresh[name][2:])
        else:
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
    torch.save(lecture.state_dict(), tmp_path / "model.pt")
    source = open_source(str(tmp_path / "model.pt"))
    assert source.config == LECTURE
    ours = packed_model(source.config)
    initialise_from(str(tmp_path / "model.pt"), ours, CharTokenizer("abcdefghijk"))
    tokens = draw_tokens(2, 8)
    with torch.no_grad():
        assert (ours(tokens)[0] - lecture(tokens)[0]).abs().max() < 1e-5
    with pytest.raises(UserError, match="tokenizer is not that of --init-from"):
        initialise_from(str(tmp_path / "model.pt"), ours, CharTokenizer("abc"))


def test_a_missing_or_unreadable_source_is_rejected(tmp_path):
    with pytest.raises(UserError, match="no such run or file"):
        defaults_of(str(tmp_path / "nothing"))
    (tmp_path / "text").write_text("not a state dict")
    with pytest.raises(UserError, match="is not a state dict of the lecture's model"):
        defaults_of(str(tmp_path / "text"))
