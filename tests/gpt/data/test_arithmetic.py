"""Problems have correct answers; held-out pairs are never trained on."""

import re
from unittest.mock import Mock

import pytest
import torch

import sample
from gpt import UserError
from gpt.config.model import IGNORE_INDEX, ModelConfig
from gpt.data.arithmetic import Addition
from gpt.training.evaluation import EVALUATION_TOKENS, task_accuracy
from gpt.training.precision import Precision
from tests.gpt.data.test_batches import splitmix64
from tests.runs import metrics, record, run

FP32 = Precision(torch.device("cpu"), torch.float32)


def lines(x, y):
    """The text of each row, and the part of it that counts in the loss."""
    whole = [Addition.tokenizer.decode(row.tolist()) for row in x]
    counted = [Addition.tokenizer.decode(row[row != IGNORE_INDEX].tolist()) for row in y]
    return [(text.rstrip("\n"), answer) for text, answer in zip(whole, counted, strict=True)]


def problem(line):
    return tuple(int(number) for number in re.match(r"(\d+)\+(\d+)=", line).groups())


def held_out(a, b):
    return splitmix64(0, min(a, b) * 10**9 + max(a, b)) % (1 << 63) % 10 == 0


@pytest.mark.parametrize("digits", [2, 8])
@pytest.mark.parametrize("split", ["train", "val"])
def test_rows_are_problems_with_correct_answers(digits, split):
    x, y = Addition(f"addition-{digits}").batch(7, 40, 500, 36, split)
    assert x.shape == y.shape == (500, 36)
    for text, answer in lines(x, y):
        a, b = problem(text)
        expected = f"{a + b:0{digits + 1}}"[::-1]
        assert text == f"{a:0{digits}}+{b:0{digits}}={expected}"
        assert answer == expected + "\n"
        assert held_out(a, b) == (split == "val")


@pytest.mark.parametrize(("digits", "expected"), [(2, 975), (8, 10_000)])  # a tenth of 10^4 pairs
def test_validation_has_distinct_held_out_problems(digits, expected):
    asked = [problem(text) for text, _ in lines(*Addition(f"addition-{digits}").validation(36))]
    assert len(set(asked)) == len(asked) == pytest.approx(expected, rel=0.13)
    assert all(held_out(a, b) for a, b in asked)


def test_accuracy_counts_rows_without_a_mistake():
    task = Addition("addition-3")
    y, wrong = task.validation(12)[1], torch.arange(60)
    tokens = torch.where(y == IGNORE_INDEX, 0, y)
    tokens[wrong, 7 + wrong % 5] += 1  # one of the four digits, or the line break
    logits = torch.nn.functional.one_hot(tokens, 32).float()
    logits[..., task.tokenizer.vocab_size :] = 9.0  # the padding of the vocabulary is ignored
    parts = logits.split(EVALUATION_TOKENS // 12)
    scores = task_accuracy(Mock(side_effect=zip(parts, parts, strict=True)), task, 12, FP32)
    assert scores == {"accuracy": pytest.approx(1 - 60 / len(y))}


def test_the_block_must_hold_a_problem_and_its_answer():
    task = Addition("addition-3")
    task.check_model(ModelConfig(block_size=12))
    with pytest.raises(UserError, match="use --block-size 12 or more"):
        task.check_model(ModelConfig(block_size=11))
    assert {len(text) for text, _ in lines(*task.validation(50))} == {12}


def test_prompt_and_answer_convert_to_and_from_what_people_write():
    task = Addition("addition-3")
    assert task.prompt(" 7 + 12 = ") == task.prompt("007+12") == "007+012="
    assert [task.answer(written) for written in ("8610", "0100", "0000")] == ["168", "10", "0"]


@pytest.mark.parametrize("text", ["\n", "1234+1=", "1+2+3=", "3-1=", "٣+1="])
def test_prompt_refuses_what_the_model_cannot_answer(text):
    message = "is not a problem that the model of addition-3 can answer; the largest is 999+999="
    with pytest.raises(UserError, match=re.escape(f"{text!r} {message}")):
        Addition("addition-3").prompt(text)


def test_a_run_learns_logs_its_accuracy_resumes_and_answers(tmp_path, capsys):
    folder = tmp_path / "out"
    options = ["--data=addition-1", "--n-layer=1", "--n-head=1", "--n-embd=32", "--block-size=8"]
    options += ["--batch-size=64", "--max-iters=160", "--eval-interval=80"]
    assert run(folder, *options, preset="addition") == 0
    evaluated = [line for line in metrics(folder) if "val_loss" in line]
    assert [line["step"] for line in evaluated] == [0, 80, 160]
    assert evaluated[-1]["train_loss"] < 0.5 < 2 < evaluated[0]["val_loss"]
    assert all(0 <= line["accuracy"] <= 1 for line in evaluated)
    assert record(folder)["scores"] == {"accuracy": evaluated[-1]["accuracy"]}
    assert run(folder, "--resume") == 0
    capsys.readouterr()
    assert sample.main([f"--out-dir={folder}", "--device=cpu", "--start=3+4="]) == 0
    assert re.fullmatch(r"3\+4=\S+\n", capsys.readouterr().out)
    assert sample.main([f"--out-dir={folder}", "--device=cpu", "--start=what"]) == 2
