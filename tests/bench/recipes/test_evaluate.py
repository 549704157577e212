"""Scores of a text and of HellaSwag against their definitions, in fp64 one token at a time."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from bench.recipes import evaluate
from gpt.data.tokenizers import CharTokenizer
from gpt.exercises import hellaswag
from gpt.models.packed import GPT
from gpt.pretrained import export
from gpt.pretrained.init_from import load_pretrained
from gpt.runs.portable_state import portable_state
from gpt.training.evaluation import text_metrics
from gpt.training.precision import Precision
from kernels.torch_ops import OPS
from tests.gpt.configs import CONFIGS, LECTURE, draw_tokens, randomise
from tests.runs import save_weights

LETTERS = CharTokenizer(" abcdeé世")
CPU = torch.device("cpu")
FP32 = Precision(CPU, torch.float32)
TEXT = "a bé世d cab 世édé babe"
CONTEXT, ENDINGS = "bad cab", ["deed", "é", "a bee bad", "bed a bed a bed"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, as far as it is needed to load its model."""
    path = tmp_path_factory.mktemp("evaluate") / "run"
    save_run(path, replace(LECTURE, vocab_size=LETTERS.vocab_size), LETTERS)
    return path


def save_run(path, config, tokenizer):
    path.mkdir()
    save_weights(path, config, tokenizer, portable_state(randomise(GPT(config, OPS))))


def scores_of(folder, capsys, *options):
    capsys.readouterr()
    assert evaluate.main([str(folder), "--device=cpu", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def log_probability(model, tokens, place):
    """Of the token at `place`, given those before it, in fp64."""
    with torch.no_grad():
        logits = model.double()(torch.tensor(tokens[:place])[None])[0][0, -1]
    return logits.log_softmax(0)[tokens[place]].item()


@pytest.mark.parametrize("implementation", ["torch", "reference"])
def test_the_loss_of_a_text_is_the_mean_over_its_tokens(folder, tmp_path, capsys, implementation):
    path = tmp_path / "text"
    path.write_text(TEXT, encoding="utf-8")
    scores = scores_of(folder, capsys, f"--text={path}", f"--kernels={implementation}")
    model, tokenizer, _ = load_pretrained(str(folder), OPS, CPU)
    tokens, block, count = tokenizer.encode(TEXT).tolist(), model.config.block_size, len(TEXT)
    total = 0.0
    for place in range(1, count):
        start = (place - 1) // block * block  # of its window
        total -= log_probability(model, tokens[start:], place - start)
    loss = total / (count - 1)
    assert scores["tokens"] == count == 20
    assert scores["bytes"] == count + 3 + 2 * 2 == len(TEXT.encode())  # three é, two 世
    assert scores["loss"] == pytest.approx(loss, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    bits = loss / math.log(2) * count / scores["bytes"]
    assert scores["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_a_perplexity_too_large_for_a_float_is_infinite(folder):
    model, tokenizer, _ = load_pretrained(str(folder), OPS, CPU)
    model.lm_head.weight.data *= 1e6
    scores = text_metrics(model, tokenizer, TEXT, model.config.block_size, FP32)
    assert math.log(sys.float_info.max) < scores["loss"] < scores["perplexity"] == math.inf


@pytest.mark.parametrize("implementation", ["torch", "reference"])
def test_the_scores_of_an_ending_are_its_sum_and_that_by_token_and_by_character(
    folder, implementation
):
    ops = OPS if implementation == "torch" else None
    model, tokenizer, _ = load_pretrained(str(folder), ops, CPU)
    scores = hellaswag.score(model, tokenizer, CONTEXT, ENDINGS, FP32)
    for ending, found in zip(ENDINGS, scores.tolist(), strict=True):
        tokens = tokenizer.encode(f"{CONTEXT} {ending}").tolist()
        left = tokens[-model.config.block_size - 1 :]  # the model's input, and the token after it
        count = min(len(ending) + 1, len(left) - 1)
        places = range(len(left) - count, len(left))
        total = sum(log_probability(model, left, place) for place in places)
        assert found == pytest.approx([total, total / count, total / len(ending)], rel=1e-4)


def write_examples(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_accuracies_are_fractions_of_correct_endings(folder, tmp_path, capsys):
    model, tokenizer, _ = load_pretrained(str(folder), OPS, CPU)
    scores = hellaswag.score(model, tokenizer, CONTEXT, ENDINGS, FP32)
    by_sum, by_mean, by_character = scores.argmax(0).tolist()
    assert len({by_sum, by_mean, by_character}) == 3
    row = {"ind": 3, "ctx": CONTEXT, "endings": ENDINGS, "activity_label": "x"}
    rows = [
        row | {"label": label} for label in (by_sum, by_mean, str(by_mean), by_mean, by_character)
    ]
    path = write_examples(tmp_path / "val.jsonl", *rows)
    found = scores_of(folder, capsys, f"--hellaswag={path}")
    assert found["examples"] == 5
    assert [found[name] for name in hellaswag.SCORES] == pytest.approx([1 / 5, 3 / 5, 1 / 5])
    found = scores_of(folder, capsys, f"--hellaswag={path}", "--limit=1")
    assert (found["acc"], found["acc_norm"], found["examples"]) == (1.0, 0.0, 1)
    text = tmp_path / "text"
    text.write_text(TEXT, encoding="utf-8")
    options = [f"--text={text}", f"--hellaswag={path}", "--device=cpu"]
    assert evaluate.main([str(folder), *options]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{text}: loss ")
    assert first.endswith(" bits per byte (20 tokens, 27 bytes)")
    assert second == (
        f"{path}: acc 0.2000, acc_norm 0.6000 (per token, as llm.c), acc_norm_chars "
        "0.2000 (per character, as lm-evaluation-harness), 5 examples"
    )


def test_pretrained_weights_can_be_evaluated(tmp_path, capsys):
    save_run(tmp_path / "run", CONFIGS["gpt2"], CharTokenizer("abcdefghijk"))
    assert export.main([str(tmp_path / "run"), str(tmp_path / "gpt2")]) == 0
    models = [load_pretrained(str(tmp_path / name), OPS, CPU) for name in ("run", "gpt2")]
    assert models[0][1].to_json() == models[1][1].to_json()
    tokens = draw_tokens(2, 8)
    with torch.no_grad():
        expected, actual = (model(tokens)[0] for model, *_ in models)
    assert torch.equal(expected, actual)
