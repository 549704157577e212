"""Problems and their scratchpads are correct; held-out pairs are never trained on."""

import re
from collections import Counter
from unittest.mock import Mock

import pytest
import torch

import sample
from gpt import UserError
from gpt.config.model import IGNORE_INDEX, ModelConfig
from gpt.data.arithmetic import DIGITS, TOKENIZER, open_task
from gpt.training.evaluation import EVALUATION_TOKENS, task_accuracy
from gpt.training.precision import Precision
from tests.gpt.data.test_batches import splitmix64
from tests.runs import metrics, record, run

FP32 = Precision(torch.device("cpu"), torch.float32)
NAMES = ["addition-2", "addition-8", "calculator", "calculator-direct"]


def lines(x, y):
    """The text of each row, and the part of it that counts in the loss."""
    whole = [TOKENIZER.decode(row.tolist()) for row in x]
    counted = [TOKENIZER.decode(row[row != IGNORE_INDEX].tolist()) for row in y]
    return [(text.rstrip("\n"), answer) for text, answer in zip(whole, counted, strict=True)]


def problem(line):
    a, sign, b = re.match(r"(\d+)([-+*/])(\d+)=", line).groups()
    return int(a), sign, int(b)


def held_out(a, b):
    return splitmix64(0, min(a, b) * 10**9 + max(a, b)) % (1 << 63) % 10 == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", ["train", "val"])
def test_rows_are_problems_with_correct_answers(name, split):
    task = open_task(name)
    x, y = task.batch(7, 40, 500, 36, split)
    assert x.shape == y.shape == (500, 36)
    signs = set()
    for text, answer in lines(x, y):
        a, sign, b = problem(text)
        digits = int(name[-1]) if name.startswith("addition") else DIGITS[sign]
        assert text.startswith(f"{a:0{digits}}{sign}{b:0{digits}}=")
        answers = {"+": f"{a + b:04}", "-": f"{a - b:+04}", "*": f"{a * b:04}"}
        answers["/"] = "{:02}r{:02}".format(*divmod(a, b or 1))
        expected = f"{a + b:0{digits + 1}}"[::-1] if "addition" in name else answers[sign]
        if name == "calculator":
            assert re.match(r"\[[-+]?[\d,]+\]", answer)
            expected = answer.partition("]")[0] + f"]{expected}"
        assert answer == expected + "\n"
        assert text.partition("=")[2] == expected
        assert held_out(a, b) == (split == "val")
        signs.add(sign)
    assert signs == set(task.digits)


# worked by hand: carries, borrows, a negative difference, two partial products, long division
SCRATCHPADS = [
    *("128+258=[16,08,03]0386", "999+999=[18,19,19]1998", "007+000=[07,00,00]0007"),
    *("128-258=[-00,03,01]-130", "300-001=[+19,19,02]+299", "045-045=[+00,00,00]+000"),
    *("47*36=[42,28,21,14,02,09,06,01]1692", "99*99=[81,89,81,89,01,10,18,09]9801"),
    *("97/12=[0,00,09,8,96,01]08r01", "99/01=[9,09,00,9,09,00]99r00"),
]


@pytest.mark.parametrize("line", SCRATCHPADS)
def test_scratchpads_are_those_of_written_arithmetic(line):
    a, sign, b = problem(line)
    (tokens,) = open_task("calculator")._line(sign, torch.tensor([a]), torch.tensor([b]))
    assert TOKENIZER.decode(tokens.tolist()) == line + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_validation_has_distinct_held_out_problems(name):
    asked = [problem(text) for text, _ in lines(*open_task(name).validation(36))]
    assert len(set(asked)) == len(asked)
    assert all(held_out(a, b) for a, _, b in asked)
    shares = {"addition-2": {"+": 975}, "addition-8": {"+": 10_000}}  # or a tenth of 10^4 pairs
    calculator = {"+": 2500, "-": 2500, "*": 975, "/": 975}
    expected = pytest.approx(shares.get(name, calculator), rel=0.13)
    assert Counter(sign for _, sign, _ in asked) == expected


def test_accuracy_counts_rows_without_a_mistake():
    task = open_task("calculator")
    operation, y = task.held_out[0], task.validation(35)[1]
    wrong = torch.cat([(operation == i).nonzero()[: 10 * i, 0] for i in range(4)])
    tokens = torch.where(y == IGNORE_INDEX, 0, y)
    tokens[wrong, (y[wrong] != IGNORE_INDEX).long().cumsum(1).argmax(1) - 1] += 1  # the last one
    logits = torch.nn.functional.one_hot(tokens, 32).float()
    logits[..., TOKENIZER.vocab_size :] = 9.0  # the padding of the vocabulary is ignored
    parts = logits.split(EVALUATION_TOKENS // 35)
    scores = task_accuracy(Mock(side_effect=zip(parts, parts, strict=True)), task, 35, FP32)
    assert scores["accuracy"] == pytest.approx(1 - 60 / len(operation))
    for i, sign in enumerate("+-*/"):
        assert scores[f"accuracy {sign}"] == pytest.approx(1 - 10 * i / (operation == i).sum())


@pytest.mark.parametrize(("name", "longest"), [("addition-3", 12), ("calculator", 35)])
def test_the_block_must_hold_the_longest_line(name, longest):
    task = open_task(name)
    task.check_model(ModelConfig(block_size=longest))
    with pytest.raises(UserError, match=f"use --block-size {longest} or more"):
        task.check_model(ModelConfig(block_size=longest - 1))
    assert max(len(text) for text, _ in lines(*task.validation(50))) == longest


def test_prompt_and_answer_convert_to_and_from_what_people_write():
    task = open_task("calculator")
    for typed, prompt in ((" 7 + 12 = ", "007+012="), ("7/12", "07/12=")):
        assert task.prompt(typed) == prompt
    answers = {"[16,08,03]0386": "386", "[-03,03,00]-033": "-33", "[+00,00,00]+000": "0"}
    for written, answer in (answers | {"[0,00,09,8,96,01]08r01": "8 r 1"}).items():
        assert task.answer(written) == answer
    assert open_task("addition-3").answer("8610") == "168"


@pytest.mark.parametrize(
    ("text", "message"),
    [("\n", "the largest are 999+999=, 999-999=, 99*99=, 99/99="), ("3/0=", "divides by 0")]
    + [(text, "is not a problem") for text in ("1234+1=", "123*1=", "٣+1=")],
)
def test_prompt_refuses_what_the_model_cannot_answer(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        open_task("calculator").prompt(text)


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
