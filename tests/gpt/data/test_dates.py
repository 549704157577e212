"""Dates are right, held-out days are never trained on, and a model learns to read them."""

import re
from datetime import date, datetime

import pytest
import torch

import sample
from gpt import UserError
from gpt.config.model import IGNORE_INDEX, ModelConfig
from gpt.data.tasks.dates import BLOCK, SOURCE, TOKENIZER, Dates
from gpt.training.step import Precision
from tests.runs import record, run

FORMATS = ("%B %d, %Y", "%d %B %Y", "%b %d %Y", "the %d of %B %Y", "%A, %d %B %Y", "%A, %B %d, %Y")
TINY = ["--data=dates", f"--block-size={BLOCK}", "--n-layer=1", "--n-embd=16", "--batch-size=4"]


@pytest.fixture(scope="module")
def dates():
    return Dates()


def texts(x, y):
    """Each row's source and answer, and how the answer goes on from what the model is given."""
    for row, target in zip(x, y, strict=True):
        text = TOKENIZER.decode(row.tolist())
        assert text[SOURCE] == "="
        answer = TOKENIZER.decode(target[target != IGNORE_INDEX].tolist())
        assert (target == IGNORE_INDEX).tolist() == [place < SOURCE for place in range(BLOCK)]
        assert text[SOURCE + 1 :] + "\n" == answer
        yield text[:SOURCE].rstrip("\n"), answer


def read(source):
    """The day, by Python's own reader of dates; exactly one format reads it."""
    plain = re.sub(r"(\d)(st|nd|rd|th)", r"\1", source)
    days = []
    for written in FORMATS:
        try:
            days.append(datetime.strptime(plain, written).date())
        except ValueError:
            continue
    assert len(set(days)) == 1, source
    if "," in source and not source[0].isdigit() and "day" in source:
        assert source.startswith(f"{days[0]:%A}")
    return days[0]


def test_every_way_of_writing_is_answered_in_iso_8601(dates):
    x, y = dates.batch(7, 0, 600, BLOCK)
    seen = set()
    for source, answer in texts(x, y):
        assert answer == f"{read(source).isoformat()}\n"
        seen.add(re.sub(r"\d+", "1", re.sub(r"[A-Z][a-z]+", "A", source)))
    # with st, nd, rd and th in two of the six
    assert len(seen) == 6 - 2 + 2 * 4


@pytest.mark.parametrize(("number", "ordinal"), [(1, "st"), (2, "nd"), (3, "rd"), (11, "th")])
def test_ordinals(dates, number, ordinal):
    written = TOKENIZER.encode(f"the {number}{ordinal} of May 1987").tolist()
    rows = dates.lines[:, : len(written)].long()
    assert (rows == torch.tensor(written)).all(1).sum() == 1


def test_days_are_those_of_two_centuries(dates):
    first, last = (TOKENIZER.decode(dates.lines[row].tolist())[SOURCE:] for row in (0, -1))
    assert (first, last) == ("=1900-01-01\n", "=2099-12-31\n")


def test_held_out_days_are_never_trained_on(dates):
    days = {
        name: {answer for _, answer in texts(x, y)}
        for name, (x, y) in {
            "train": dates.batch(1, 0, 3000, BLOCK),
            "val": dates.batch(1, 0, 300, BLOCK, "val"),
        }.items()
    }
    whole = dates.validation(BLOCK)
    assert whole[0].shape == whole[1].shape == (10_000, BLOCK)
    held_out = {answer for _, answer in texts(*(each[:3000] for each in whole))}
    assert not days["train"] & (held_out | days["val"])
    day = torch.arange(len(dates.lines)) // 6
    assert not set(day[dates.training].tolist()) & set(day[dates.held_out].tolist())
    share = 1 - len(dates.training) / len(dates.lines)
    assert share == pytest.approx(0.1, abs=0.005)


def test_rows_depend_on_their_place_alone(dates):
    whole = dates.batch(3, 40, 20, BLOCK)
    for part in range(2):
        again = dates.batch(3, 40 + 10 * part, 10, BLOCK)
        for one, other in zip(whole, again, strict=True):
            assert torch.equal(one[10 * part : 10 * part + 10], other)
    assert not torch.equal(dates.batch(4, 40, 20, BLOCK)[0], whole[0])


def test_scores_count_what_is_read_without_a_mistake(dates):
    answers = {}
    for x, y in zip(*dates.validation(BLOCK), strict=True):
        answers[tuple(x.tolist())] = y

    class Reader(torch.nn.Module):
        """Knows every answer, and errs in the last digit of one year in four."""

        def forward(self, x):
            logits = torch.zeros(*x.shape, TOKENIZER.vocab_size)
            for row, tokens in enumerate(x.tolist()):
                right = answers[tuple(tokens)].clamp(min=0)
                if (right[SOURCE : SOURCE + 4].sum() % 4) == 0:
                    right = right.clone()
                    right[SOURCE + 3] += 1
                logits[row].scatter_(1, right[:, None], 1.0)
            return logits, None

    wrong = sum(int(y[SOURCE : SOURCE + 4].sum()) % 4 == 0 for y in answers.values())
    held = list(map(tuple, dates.validation(BLOCK)[0].tolist()))
    assert len(set(held)) == len(held)
    precision = Precision(torch.device("cpu"), torch.float32)
    scores = dates.scores(Reader(), BLOCK, precision)
    assert scores == {"accuracy": pytest.approx(1 - wrong / 10_000)}
    assert 0.1 < scores["accuracy"] < 0.9


def test_a_date_that_is_typed_is_the_row_s_beginning(dates):
    day, way = (date(1987, 3, 5) - date(1900, 1, 1)).days, 1
    row = TOKENIZER.decode(dates.lines[6 * day + way].tolist())
    assert dates.prompt(" 5 March 1987 =") == row[: SOURCE + 1]
    for wrong in ("", "5 März 1987", "5" * (SOURCE + 1)):
        with pytest.raises(UserError, match="reads a date of at most 32 characters"):
            dates.prompt(wrong)


@pytest.mark.parametrize("changes", [{"block_size": 44}, {"block_size": 43, "source_size": 31}])
def test_sizes_must_be_those_of_the_rows(dates, changes):
    with pytest.raises(UserError, match="dates need --block-size 43, and --source-size 32"):
        dates.check_model(ModelConfig(**changes))
    dates.check_model(ModelConfig(block_size=43))
    dates.check_model(ModelConfig(block_size=43, source_size=32))


@pytest.mark.parametrize("size", [0, SOURCE])
def test_a_run_reads_dates_with_and_without_an_encoder(tmp_path, capsys, size):
    folder = tmp_path / "out"
    short = ["--max-iters=1", "--eval-interval=1"]
    options = [*TINY, *short, f"--source-size={size}", "--sample=5"]
    assert run(folder, *options) == 0
    assert 0 <= record(folder)["scores"]["accuracy"] <= 1
    capsys.readouterr()
    for table in ("torch", "reference"):
        arguments = [f"--out-dir={folder}", "--start=5 March 1987", f"--kernels={table}"]
        assert sample.main([*arguments, "--device=cpu"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("5 March 1987=")
    half = len(said) // 2  # both say the same, line breaks and all
    assert said[:half] == said[half:]
    assert run(folder, "--resume", "--max-iters=2") == 0


def test_a_source_is_refused_where_the_data_has_none(tmp_path, capsys):
    assert run(tmp_path / "out", "--source-size=3") == 2
    assert "--source-size is for data of pairs" in capsys.readouterr().err
