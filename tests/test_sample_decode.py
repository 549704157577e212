"""sample.py: streamed samples on stdout, speed on stderr, stop texts, int8."""

import os
import re
from types import SimpleNamespace

import numpy as np
import pytest

import sample
from gpt.pretrained.state_files import little_memory
from gpt.process import protect_streams
from tests.runs import in_child


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


def test_streams_that_break_or_cannot_encode(trained, tmp_path, monkeypatch):
    """A sample that cannot be printed is an error; its speed is not missed."""
    for name in ("sys.__stdout__", "sys.__stderr__"):
        monkeypatch.setattr(name, SimpleNamespace(encoding="ascii"))
    arguments = [f"--out-dir={trained / 'run'}", "--device=cpu", "--max-new-tokens=300"]

    def program(start="ab"):
        protect_streams(keep_stdout=True)
        return sample.main([*arguments, f"--start={start}"])

    def printed(name):
        return (tmp_path / name).read_text()

    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full, (tmp_path / "err").open("wb") as err:
        assert in_child(program, full.fileno(), full.fileno(), err.fileno()) == 2
        problem = "the sample cannot be printed: No space left on device"
        assert printed("err") == f"sample.py: {problem}\n"
        assert in_child(program, full.fileno(), writer, full.fileno()) == 0  # as with | head
    with (tmp_path / "out").open("wb") as out:
        assert in_child(program, out.fileno(), out.fileno(), None) == 0
        assert len(printed("out")) == 303
        assert in_child(lambda: program("é"), out.fileno(), out.fileno(), out.fileno()) == 2
    os.close(writer)
    assert "the character '?' is not in" in printed("out")


def test_out_of_memory_is_one_sentence(trained, capsys):
    options = ["--num-samples=65535", "--max-new-tokens=9999"]
    with little_memory(1 << 28):
        assert sample.main([f"--out-dir={trained / 'run'}", "--device=cpu", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "sample.py: out of memory; use fewer --num-samples or --max-new-tokens, or a GPU"
