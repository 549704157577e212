"""sample.py: streamed samples on stdout, speed on stderr, stop texts, int8."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

import sample


@pytest.fixture
def output(trained, capsys):
    """Run sample.py; return its stdout and stderr."""

    def call(*options, folder=trained / "run"):
        assert sample.main([f"--out-dir={folder}", "--device=cpu", "--start=ab", *options]) == 0
        return capsys.readouterr()

    return call


def test_samples_depend_on_the_seed_and_not_on_their_number(output):
    first = output("--max-new-tokens=30")
    assert first.out.startswith("ab")
    assert len(first.out) == len("ab") + 30 + len("\n")
    assert re.fullmatch(r"30 tokens .*tokens/s.*\n", first.err)
    several = output("--max-new-tokens=30", "--num-samples=3").out.removesuffix("\n")
    samples = several.split(f"\n{sample.SEPARATOR}\n")
    assert [len(text) for text in samples] == [32] * 3
    assert len(set(samples)) == 3
    assert first.out == samples[0] + "\n"
    assert output("--max-new-tokens=30", "--seed=1").out != first.out


def test_a_stop_text_ends_a_sample_and_the_program(output):
    whole = output("--max-new-tokens=40").out.removesuffix("\n")
    stop = whole[20:22]
    stopped = output("--max-new-tokens=1000000", f"--stop={stop}").out
    assert stopped.removesuffix("\n") == "ab" + whole[2:].partition(stop)[0]


def test_the_prompt_may_come_from_a_file(output, tmp_path):
    path = tmp_path / "prompt"
    path.write_text("abc\nba" * 5)
    text = output(f"--start=FILE:{path}", "--max-new-tokens=5", "--slide=3", "--dtype=float16").out
    assert text.startswith("abc\nba" * 5)
    assert len(text) == 30 + 5 + 1


def test_greedy_text_does_not_depend_on_the_kernels(output):
    options = ("--max-new-tokens=30", "--temperature=0", "--num-samples=2")
    first = output(*options).out
    assert output(*options, "--kernels=reference").out == first
    assert len(output(*options, "--quantize=int8").out) == len(first)
    past_the_block = output("--max-new-tokens=9", "--temperature=0", "--kernels=triton").out
    assert past_the_block == first[:11] + "\n"


def test_init_from_names_the_model_in_place_of_a_run_in_out_dir(output, trained):
    expected = output("--max-new-tokens=30").out
    named = output("--max-new-tokens=30", f"--init-from={trained / 'run'}", folder="none")
    assert named.out == expected


def test_an_end_of_text_in_the_prompt_is_its_token():
    tokenizer = SimpleNamespace(end_of_text=7, encode=lambda text: np.array([*map(ord, text)], int))
    start = "<|endoftext|>a<|endoftext|>bc"
    assert sample.encode_prompt(start, tokenizer).tolist() == [7, 97, 7, 98, 99]
    tokenizer.end_of_text = None
    assert sample.encode_prompt(start, tokenizer).tolist() == [*map(ord, start)]
