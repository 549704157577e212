"""Dates are correct, held-out days are never trained on, and a run learns to read them."""

from datetime import date

import pytest

import sample
from gpt import UserError
from gpt.config.model import IGNORE_INDEX, ModelConfig
from gpt.data.tasks.dates import BLOCK, SOURCE, TOKENIZER, DatePairs, lines_of
from tests.runs import record, run

TINY = ["--data=dates", f"--block-size={BLOCK}", "--n-layer=1", "--n-embd=16", "--batch-size=4"]


@pytest.fixture(scope="module")
def dates():
    return DatePairs()


def texts(x, y):
    """Source and answer of each row; only the answer counts in the loss."""
    for row, target in zip(x, y, strict=True):
        text = TOKENIZER.decode(row.tolist())
        assert text[SOURCE] == "="
        answer = TOKENIZER.decode(target[target != IGNORE_INDEX].tolist())
        assert (target == IGNORE_INDEX).tolist() == [place < SOURCE for place in range(BLOCK)]
        assert text[SOURCE + 1 :] + "\n" == answer
        yield text[:SOURCE].rstrip("\n"), answer


def sources(day):
    return [line[:SOURCE].rstrip("\n") for line in lines_of(day)]


def test_a_day_is_written_in_every_format():
    assert sources(date(1987, 3, 5)) == [
        *("March 5, 1987", "5 March 1987", "Mar 5 1987", "the 5th of March 1987"),
        *("Thursday, 5 March 1987", "Thursday, March 5th, 1987"),
    ]
    for ordinal in ("1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "23rd"):
        day = date(2000, 12, int(ordinal[:-2]))
        assert f"the {ordinal} of December 2000" in sources(day)


def test_rows_are_answered_in_iso_8601(dates):
    first, last = (TOKENIZER.decode(dates.lines[row].tolist())[SOURCE:] for row in (0, -1))
    assert (first, last) == ("=1900-01-01\n", "=2099-12-31\n")
    for source, answer in texts(*dates.batch(7, 0, 600, BLOCK)):
        day = date.fromisoformat(answer.strip())
        assert source in sources(day)
        assert answer == f"{day:%Y-%m-%d}\n"


def test_held_out_days_are_never_trained_on(dates):
    train, val = (
        {answer for _, answer in texts(*dates.batch(1, 0, rows, BLOCK, split))}
        for split, rows in (("train", 3000), ("val", 300))
    )
    whole = dates.validation(BLOCK)
    assert whole[0].shape == whole[1].shape == (10_000, BLOCK)
    assert len(whole[0].unique(dim=0)) == 10_000
    held_out = {answer for _, answer in texts(*(each[:3000] for each in whole))}
    assert not train & (held_out | val)
    share = 1 - len(dates.training) / len(dates.lines)
    assert share == pytest.approx(0.1, abs=0.005)


def test_prompt_pads_a_typed_date_like_a_row(dates):
    day, written = (date(1987, 3, 5) - date(1900, 1, 1)).days, 1
    row = TOKENIZER.decode(dates.lines[6 * day + written].tolist())
    assert dates.prompt(" 5 March 1987 =") == row[: SOURCE + 1]
    for wrong in ("", "5 März 1987", "5" * (SOURCE + 1)):
        with pytest.raises(UserError, match="is not a date that the model can read"):
            dates.prompt(wrong)


@pytest.mark.parametrize("changes", [{"block_size": 44}, {"block_size": 43, "source_size": 31}])
def test_the_sizes_of_the_model_must_match_the_rows(dates, changes):
    with pytest.raises(UserError, match="dates need --block-size 43, and --source-size 32"):
        dates.check_model(ModelConfig(**changes))
    dates.check_model(ModelConfig(block_size=43))
    dates.check_model(ModelConfig(block_size=43, source_size=32))


@pytest.mark.parametrize("size", [0, SOURCE])
def test_a_run_reads_dates_with_and_without_an_encoder(tmp_path, capsys, monkeypatch, size):
    monkeypatch.setattr("gpt.data.tasks.dates.PROBLEMS", 100)
    folder = tmp_path / "out"
    short = ["--max-iters=1", "--eval-interval=1"]
    assert run(folder, *TINY, *short, f"--source-size={size}", "--sample=5") == 0
    assert 0 <= record(folder)["scores"]["accuracy"] <= 1
    capsys.readouterr()
    for table in ("torch", "reference"):
        arguments = [f"--out-dir={folder}", "--start=5 March 1987", f"--kernels={table}"]
        assert sample.main([*arguments, "--device=cpu"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("5 March 1987=")
    half = len(said) // 2  # both models print the same
    assert said[:half] == said[half:]
    assert run(folder, "--resume", "--max-iters=2") == 0
