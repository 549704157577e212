"""Problems are right, answers alone count, held-out pairs are never trained on, scores are true."""

import re

import pytest
import torch

import sample
from gpt import UserError
from gpt.config.model import IGNORE_INDEX, ModelConfig
from gpt.data.tasks.arithmetic import CALCULATOR, TOKENIZER, open_task
from gpt.training.step import Precision
from tests.gpt.data.test_batches import splitmix64
from tests.runs import metrics, record, run

FP32 = Precision(torch.device("cpu"), torch.float32)
NAMES = ["addition-2", "addition-8", "calculator", "calculator-direct"]


def lines(x, y):
    """Each row's text, and what of it counts."""
    whole = [TOKENIZER.decode(row.tolist()) for row in x]
    counted = [TOKENIZER.decode(row[row != IGNORE_INDEX].tolist()) for row in y]
    return [(text.rstrip("\n"), answer) for text, answer in zip(whole, counted, strict=True)]


def problem(line):
    a, sign, b = re.match(r"(\d+)([-+*/])(\d+)=", line).groups()
    return int(a), sign, int(b)


def held_out(a, b):
    return splitmix64(0, min(a, b) * 10**9 + max(a, b)) % (1 << 63) % 10 == 0


def plain_answer(a, sign, b):
    if sign == "/":
        return f"{a // b:02}r{a % b:02}"
    if sign == "-":
        return f"{a - b:+04}"
    return f"{a + b:04}" if sign == "+" else f"{a * b:04}"


def plain_work(a, sign, b):
    """As a child writes it down."""
    written = []
    if sign in "+-":
        high, low = (a, b) if sign == "+" else (max(a, b), min(a, b))
        carry = 0
        for x, y in list(zip(f"{high:03}", f"{low:03}", strict=True))[::-1]:
            if sign == "+":
                carry, rest = divmod(int(x) + int(y) + carry, 10)
            else:
                borrows = int(x) < int(y) + carry
                carry, rest = int(borrows), int(x) + 10 * borrows - int(y) - carry
            written.append(f"{carry}{rest}")
        return ("" if sign == "+" else "+-"[a < b]) + ",".join(written)
    if sign == "*":
        tens, units = divmod(b, 10)
        for factor in (units, tens):
            written += [f"{a % 10 * factor:02}", f"{a // 10 * factor + a % 10 * factor // 10:02}"]
        first, second = f"{a * units:04}", f"{a * tens * 10:04}"
        carry = 0
        for x, y in zip(first[::-1], second[::-1], strict=True):
            written.append(f"{int(x) + int(y) + carry:02}")
            carry = int(written[-1][0])
        return ",".join(written)
    first, last = a // 10 // b, (a // 10 % b * 10 + a % 10) // b
    rest = a // 10 % b
    return f"{first},{first * b:02},{rest:02},{last},{last * b:02},{a % b:02}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", ["train", "val"])
def test_each_row_is_a_problem_its_answer_counts_and_it_is_right(name, split):
    task = open_task(name)
    x, y = task.batch(7, 40, 500, 36, split)
    assert x.shape == y.shape == (500, 36)
    signs = set()
    for text, answer in lines(x, y):
        a, sign, b = problem(text)
        digits = int(name[-1]) if name.startswith("addition") else CALCULATOR[sign]
        assert text.startswith(f"{a:0{digits}}{sign}{b:0{digits}}=")
        expected = f"{a + b:0{digits + 1}}"[::-1] if "addition" in name else ""
        expected = expected or plain_answer(a, sign, b)
        if name == "calculator":
            expected = f"[{plain_work(a, sign, b)}]{expected}"
        assert answer == expected + "\n"
        assert text.partition("=")[2] == expected
        assert held_out(a, b) == (split == "val")
        signs.add(sign)
    assert signs == set(task.digits)


def test_the_examples_of_the_docstring():
    for a, sign, b, work in (
        (128, "+", 258, "16,08,03"),
        (128, "-", 258, "-00,03,01"),
        (47, "*", 36, "42,28,21,14,02,09,06,01"),
        (97, "/", 12, "0,00,09,8,96,01"),
    ):
        assert plain_work(a, sign, b) == work


def test_no_held_out_pair_is_ever_drawn_and_all_others_are():
    x, y = open_task("calculator-direct").batch(1, 0, 150_000, 12)
    drawn = {problem(text) for text, _ in lines(x, y)}
    assert not any(held_out(a, b) for a, _, b in drawn)
    products = {(a, b) for a, sign, b in drawn if sign == "*"}
    trainable = {(a, b) for a in range(100) for b in range(100) if not held_out(a, b)}
    assert products <= trainable
    assert len(products) > 0.95 * len(trainable)  # three draws of each: e^-3.3 are missed
    assert all(b for _, sign, b in drawn if sign == "/")


@pytest.mark.parametrize("name", NAMES)
def test_an_evaluation_asks_held_out_problems_once_each(name):
    asked = [problem(text) for text, _ in lines(*open_task(name).validation(36))]
    assert len(set(asked)) == len(asked)
    assert all(held_out(a, b) for a, _, b in asked)
    for sign in {sign for _, sign, _ in asked}:
        count = sum(s == sign for _, s, _ in asked)
        if name == "addition-8":
            assert count == 10_000
        elif sign in "*/" or name == "addition-2":
            assert 850 < count < 1100  # a tenth of 10^4 pairs
        else:
            assert count == 2500


def test_a_batch_is_a_function_of_seed_and_row_alone():
    task = open_task("calculator")
    whole = task.batch(3, 0, 8, 35)
    for first in (0, torch.tensor(4)):
        part = task.batch(3, first, 4, 35)
        assert all(torch.equal(p, w[int(first) :][:4]) for p, w in zip(part, whole, strict=True))
    assert not torch.equal(whole[0], task.batch(4, 0, 8, 35)[0])


class Answers(torch.nn.Module):
    """Is sure of the right next token, but for the rows of `wrong`: there it misses the last."""

    def __init__(self, task, wrong):
        super().__init__()
        _, y = task.validation(35)
        self.likeliest = torch.where(y == IGNORE_INDEX, 0, y)
        self.likeliest[wrong, (y[wrong] != IGNORE_INDEX).long().cumsum(1).argmax(1) - 1] += 1
        self.row = 0

    def forward(self, x):
        rows = slice(self.row, self.row + len(x))
        self.row += len(x)
        logits = torch.nn.functional.one_hot(self.likeliest[rows], 32).float()
        logits[..., TOKENIZER.vocab_size :] = 9.0  # padding of the vocabulary is no answer
        return logits, None


def test_scores_are_shares_of_rows_without_a_mistake():
    task = open_task("calculator")
    operation = task.held_out[0]
    wrong = torch.cat([(operation == i).nonzero()[: 10 * i, 0] for i in range(4)])
    scores = task.scores(Answers(task, wrong), 35, FP32)
    assert scores["accuracy"] == pytest.approx(1 - 60 / len(operation))
    for i, sign in enumerate("+-*/"):
        assert scores[f"accuracy {sign}"] == pytest.approx(1 - 10 * i / (operation == i).sum())


@pytest.mark.parametrize(("name", "longest"), [("addition-3", 12), ("calculator", 35)])
def test_a_block_that_is_too_small_is_refused(name, longest):
    task = open_task(name)
    task.check_model(ModelConfig(block_size=longest))
    with pytest.raises(UserError, match=f"give --block-size {longest} or more"):
        task.check_model(ModelConfig(block_size=longest - 1))
    assert max(len(text) for text, _ in lines(*task.validation(50))) == longest


def test_what_people_type_and_read():
    task = open_task("calculator")
    assert task.prompt(" 7 + 12 = ") == "007+012="
    assert task.prompt("7/12") == "07/12="
    assert task.answer("[16,08,03]0386") == "386"
    assert task.answer("[-03,03,00]-033") == "-33"
    assert task.answer("[+00,00,00]+000") == "0"
    assert task.answer("[0,00,09,8,96,01]08r01") == "8 r 1"
    assert open_task("addition-3").answer("8610") == "168"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "answers problems up to 999+999=, 999-999=, 99*99=, 99/99="),
        ("1234+1=", "answers problems up to"),
        ("123*1=", "answers problems up to"),
        ("3/0=", "divided by 0"),
        ("٣+1=", "answers problems up to"),
    ],
)
def test_no_problem_is_refused(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        open_task("calculator").prompt(text)


SMALL = ["--n-layer=1", "--n-head=1", "--n-embd=32", "--block-size=8", "--batch-size=64"]


def test_the_recipe_learns_logs_its_accuracy_goes_on_and_answers(tmp_path, capsys):
    folder = tmp_path / "out"
    options = ["--data=addition-1", *SMALL, "--max-iters=160", "--eval-interval=80"]
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
