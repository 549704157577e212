"""sample.py: samples in order, each as it is made; stops, files, JSON, int8, figures on stderr."""

import json
import re

import pytest
import torch

import sample
from gpt.generation.generate import TextStream
from tests.runs import run, tensor_files

FIGURES = re.compile(r"[\d,]+ tokens in \d+\.\d\d s, [\d,]+ tokens/s; the first after \d+ ms\n")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a block of 8 tokens, and where it lies."""
    folder = tmp_path_factory.mktemp("sample") / "run"
    assert run(folder) == 0
    return folder


@pytest.fixture
def speak(trained, capsys):
    """What sample.py prints on stdout and stderr."""

    def call(*options, folder=trained):
        assert sample.main([f"--out-dir={folder}", "--device=cpu", "--start=ab", *options]) == 0
        return capsys.readouterr()

    return call


def test_a_sample_begins_with_its_prompt_and_figures_go_to_stderr(speak):
    said = speak("--max-new-tokens=20")
    assert said.out.startswith("ab")
    assert len(said.out) == len("ab") + 20 + len("\n")
    assert FIGURES.fullmatch(said.err)
    assert said.err.startswith("20 tokens in ")


def test_samples_are_printed_apart_and_the_first_is_that_of_one_alone(speak):
    """Their number changes nothing: rows draw from noise of their own."""
    three = speak("--max-new-tokens=30", "--num-samples=3").out
    samples = three.removesuffix("\n").split(f"\n{sample.SEPARATOR}\n")
    assert [len(text) for text in samples] == [32] * 3
    assert len(set(samples)) == 3
    assert speak("--max-new-tokens=30").out == samples[0] + "\n"


def test_the_same_seed_says_the_same(speak):
    first = speak("--max-new-tokens=30").out
    assert speak("--max-new-tokens=30").out == first
    assert speak("--max-new-tokens=30", "--seed=1").out != first


def test_a_stop_ends_a_sample_and_the_program_when_all_are_ended(speak):
    whole = speak("--max-new-tokens=40").out.removesuffix("\n")
    stop = whole[20:22]
    said = speak("--max-new-tokens=1000000", f"--stop={stop}")
    assert said.out.removesuffix("\n") == "ab" + whole[2:].partition(stop)[0]


def test_json_is_one_object_with_the_samples_and_the_figures(speak, tmp_path):
    texts = speak("--max-new-tokens=12", "--num-samples=2").out.removesuffix("\n")
    texts = [text.removeprefix("ab") for text in texts.split(f"\n{sample.SEPARATOR}\n")]
    said = speak("--max-new-tokens=12", "--num-samples=2", "--json")
    record = json.loads(said.out)
    assert record["start"] == "ab"
    assert record["samples"] == [{"text": text, "tokens": 12, "stopped": False} for text in texts]
    assert record["tokens"] == 24
    assert 0 < record["first_token_seconds"] <= record["seconds"]
    assert record["tokens_per_second"] == pytest.approx(24 / record["seconds"])
    assert FIGURES.fullmatch(said.err)


def test_a_prompt_from_a_file(speak, tmp_path):
    path = tmp_path / "prompt"
    path.write_text("abc\nba" * 5)
    said = speak(f"--start=FILE:{path}", "--max-new-tokens=5").out
    assert said.startswith("abc\nba" * 5)
    assert len(said) == 30 + 5 + 1


@pytest.mark.parametrize("options", [["--kernels=reference"], ["--slide=3"], ["--dtype=float16"]])
def test_every_way_of_computing_speaks(speak, options):
    assert len(speak("--max-new-tokens=20", *options).out) == 23


def test_the_likeliest_text_does_not_depend_on_the_kernels(speak):
    options = ("--max-new-tokens=30", "--temperature=0", "--num-samples=2")
    first = speak(*options).out
    assert speak(*options, "--kernels=reference").out == first
    assert speak("--max-new-tokens=6", "--temperature=0", "--kernels=triton").out[:8] == first[:8]


def test_int8_is_saved_as_a_run_and_its_cost_is_said(speak, trained, tmp_path):
    folder = tmp_path / "int8"
    options = ("--max-new-tokens=20", "--dtype=float32")
    said = speak("--quantize=int8", f"--save-dir={folder}", *options)
    cost, figures = said.err.splitlines(keepends=True)
    assert FIGURES.fullmatch(figures)
    found = re.match(
        r"int8: [\d.]+ MB instead of [\d.]+, perplexity ([\d.]+) instead of ([\d.]+) ", cost
    )
    after, before = map(float, found.groups())
    assert abs(after / before - 1) < 0.005
    assert speak(*options, folder=folder).out == said.out
    assert speak("--quantize=int8", *options).out == said.out
    sizes = [
        next(place.glob("*.weights.safetensors")).stat().st_size for place in (folder, trained)
    ]
    assert sizes[0] < sizes[1]
    assert tensor_files(folder, "best").keys() == {"weights"}
    record = json.loads((folder / "best.json").read_text())
    assert record["int8"]["perplexity"] == pytest.approx(after, abs=1e-4)


@pytest.mark.parametrize("draft", ["lookup", "RUN"])
def test_guessing_ahead_says_the_likeliest_text_all_the_same(speak, trained, draft):
    options = ("--max-new-tokens=30", "--temperature=0", "--slide=4")
    draft = draft.replace("RUN", str(trained))
    assert speak(*options, f"--draft={draft}").out == speak(*options).out
    drawn = speak("--max-new-tokens=30", "--slide=4", f"--draft={draft}")
    assert len(drawn.out) == 33
    assert FIGURES.fullmatch(drawn.err)
    assert drawn.err.startswith("30 tokens in ")


def test_a_draft_of_other_tokens_is_refused(trained, tmp_path, capsys):
    text = tmp_path / "of other letters"
    text.write_text("xyz" * 200)
    assert run(tmp_path / "other", f"--data={text}") == 0
    options = [f"--out-dir={trained}", "--device=cpu", "--start=ab"]
    assert sample.main([*options, f"--draft={tmp_path / 'other'}"]) == 2
    assert "is not a GPT with the tokens of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--save-dir=SAVED"], "give --quantize int8 too"),
        (["--quantize=int8", "--kernels=reference"], "is for the fast model"),
        (["--quantize=int8", "--save-dir=RUN"], "holds a run already"),
        (["--quantize=int8", "--save-dir=RUN/best.json/x"], "cannot be made: Not a directory"),
        (["--draft=lookup", "--kernels=reference"], "is for the fast model"),
        (["--draft=lookup", "--num-samples=2"], "leave --num-samples at 1"),
        (["--draft=SAVED"], "is there a run in"),
        (["--slide=0"], "--slide must be at least 1"),
        (["--slide=9"], "--slide is at most the run's block size, 8"),
        (["--quantize=int4"], "invalid choice 'int4'"),
    ],
)
def test_what_cannot_be_done_is_refused(trained, tmp_path, capsys, options, sentence):
    places = {"SAVED": str(tmp_path / "saved"), "RUN": str(trained)}
    for name, place in places.items():
        options = [option.replace(name, place) for option in options]
    assert sample.main([f"--out-dir={trained}", "--device=cpu", "--start=ab", *options]) == 2
    assert sentence in capsys.readouterr().err


def test_int8_twice_is_refused(speak, trained, tmp_path, capsys):
    speak("--quantize=int8", f"--save-dir={tmp_path / 'int8'}", "--max-new-tokens=1")
    assert sample.main([f"--out-dir={tmp_path / 'int8'}", "--start=a", "--quantize=int8"]) == 2
    assert "is int8 already" in capsys.readouterr().err


def test_a_sample_is_printed_when_those_before_it_are_over():
    """The second ends first; the third is never ended."""
    texts, stop = ("aab|", "b|", "aaaaaa"), "|"
    taken = []

    def tokens():
        for step in range(6):
            taken.append(step)
            yield torch.tensor([min(step, len(text) - 1) for text in texts])

    streams = [TextStream(text.__getitem__, stop) for text in texts]
    printed = [(len(taken), *piece) for piece in sample.in_order(tokens(), streams)]
    assert [piece for piece in printed if piece[2]] == [
        (1, 0, "a"),
        (2, 0, "a"),
        (3, 0, "b"),
        (4, 1, "b"),
        (4, 2, "aaaa"),
        (5, 2, "a"),
        (6, 2, "a"),
    ]
    assert [stream.tokens for stream in streams] == [4, 2, 6]


def test_no_token_is_made_when_all_samples_are_ended():
    def tokens():
        yield torch.tensor([0, 0])
        yield torch.tensor([1, 1])
        raise AssertionError("one too many")

    streams = [TextStream("a|".__getitem__, "|") for _ in range(2)]
    assert [piece for piece in sample.in_order(tokens(), streams) if piece[1]] == [
        (0, "a"),
        (1, "a"),
    ]
