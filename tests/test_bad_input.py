"""Invalid options and files: exit code 2, one line that names the option or value, no changes.

One case or a few for each border between modules; the tests of each module have the rest. FOLDER
contains a finished run in `run`. A case may damage it before the program starts.
"""

import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

import sample
import train
from gpt.data import prepare
from gpt.pretrained import export
from tests.runs import CPU, SHORT, SIZES, record, sign, sign_tensors

RUN, NEW = "--out-dir=FOLDER/run", "--out-dir=FOLDER/new"
TEXT, TOKENS = f"--data=FOLDER/text {NEW}", f"--data=FOLDER/tokens {NEW}"
RESUME = f"--resume --max-iters=9 {RUN}"


def preparation(function):
    """Curry `function(folder, ...)`: the other arguments first, then the folder."""
    return lambda *arguments, **options: lambda folder: function(folder, *arguments, **options)


@preparation
def write(folder, **files):
    """Write files in the folder, or those with an underscore as tokens/train.bin etc."""
    (folder / "tokens").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / ("tokens/" * ("_" in name) + name.replace("_", "."))).write_bytes(content)


@preparation
def remove(folder, pattern):
    for path in (folder / "run").glob(pattern):
        path.unlink()


def pipe(folder):
    """A pipe that nobody writes to."""
    os.mkfifo(folder / "pipe")


@preparation
def fill(folder, name, size):
    """Write a file of so many zero bytes."""
    (folder / name).touch()
    os.truncate(folder / name, size)


def spoil(folder):
    """Put a NaN into the weights of the best checkpoint."""
    path = folder / "run" / record(folder / "run", "best")["files"]["weights"]["name"]
    weights = load_file(path)
    weights["ln_f.weight"][0] = float("nan")
    save_file(weights, path)
    sign_tensors(path)


def other_text(folder):
    write(other=b"klmnopqrstuv" * 40)(folder)
    changed = record(folder / "run")
    changed["train"]["data"] = str(folder / "other")
    sign(folder / "run" / "last.json", changed)


def named(options):
    """Cases in which the message names the option."""
    return [(option, option.partition("=")[0], None) for option in options.split()]


TRAIN = named("""
    --batch-size=0 --activation=swish --out-dir= --n-kv-head=3 --vocab-size=5
    --lecture=bigramm --kernels=cuda --device=tpu --device=meta
    --device=cuda:99 --data=missing/text --data=FOLDER/text/below --data=a\0b
    --preset= --data= --data-dir= --tokenizer= --kernels= --device= --init-from= --device=cpu:5
    --seed=18446744073709551616 --max-iters=1e30 --max-iters=2147483648 --batch-size=1048576
    --sample=99999999 --window=1000000000000000000000 --learning-rate=1e300 --grad-clip=inf
""")
TRAIN += [  # options, what the message contains, preparation of FOLDER
    ("--kernels=torch,attention", "attention", None),
    ("--kernels=torch,attentoin=torch", "attentoin", None),
    ("--n-embd=2000000000", "GB", None),
    ("--kernels=reference --block-size=99999999", "100000000", None),
    ("--block-size=50", "validation split", None),
    ("--device=a\x1b[2J", "--device a\\x1b[2J is not supported", None),  # clears a terminal
    # pretrained weights
    ("--init-from=FOLDER/run", "ln_f.weight is not finite", spoil),
    ("--init-from=FOLDER/run --n-head=1", "--n-head is 1, but the model of --init-from has", None),
    ("--init-from=FOLDER/run --activation=relu", "--activation is relu", None),
    ("--init-from=FOLDER/run --block-size=9", "has shape (8, 16)", None),
    # texts and token files
    (f"--data={'a' * 300}", "--data", None),
    (f"--data=openwebtext {NEW}", "run python -m gpt.data.prepare openwebtext", None),
    (f"--document-mask {NEW}", "--document-mask needs an end-of-text token", None),
    (f"--data=FOLDER {NEW}", "train.bin", None),
    (TEXT, "0 tokens", write(text=b"")),
    (TEXT, "not UTF-8 at byte 99999;", write(text=b"ab " * 33_333 + b"\xff\xfe" * 99)),
    (TOKENS, "train.bin", write(train_bin=bytes(99), meta_json=b'{"kind":"byte"}')),
    (TOKENS, "meta.pkl", write(train_bin=bytes(100), meta_pkl=b"\x80\x04garbage")),
    # folders and runs
    ("--out-dir=FOLDER/file", "FOLDER/file", write(file=b"")),
    (f"--resume {NEW}", "new does not exist; name the folder of a run", None),
    (f"--resume --max-iters=2 {RUN}", "4 steps", None),
    (f"{RESUME} --n-layer=3", "--n-layer", None),
    (RESUME, "optimizer", remove("*.optimizer.*")),
    (RESUME, "/other", other_text),
]
SAMPLE = named("""
    --strat=x --temperature=-1 --num-samples=0 --max-new-tokens=0 --slide=-1 --start= --out-dir=
    --num-samples=65536 --max-new-tokens=99999999 --top-k=1e30 --top-k=9999999999 --seed=-1
    --seed=9223372036854775808 --temperature=1e300 --temperature=nan --top-p=inf
""")
SAMPLE += [
    ("--start=FILE:FOLDER/pipe", "not a regular file of at most", pipe),
    ("--start=FILE:/dev/zero", "/dev/zero cannot be read: it is not a regular file", None),
    ("--start=aé", "é", None),
    ("--start=a\udcff", "\\udcff", None),
    ("--start=FILE:FOLDER/nothing", "No such file", None),
    ("--start=FILE:FOLDER/empty", "prompt", write(empty=b"")),
    ("--start=FILE:FOLDER/text", "UTF-8", write(text=b"\xff")),
    (NEW, "new does not exist; name the folder of a run", None),
    (RUN, "weights", remove("*.weights.*")),
    (RUN, "ln_f.weight", spoil),
    # generation
    ("--slide=9", "block size", None),
    ("--quantize=int8 --kernels=reference", "--quantize", None),
]
EXPORT = [("", "the folder to write", None), ("FOLDER/new", "ln_f.weight is not finite", spoil)]
PREPARE = [
    ("", "there is nothing to prepare", None),
    ("FOLDER/missing.txt", "missing.txt is not a file", None),
    ("FOLDER/a.txt --val-fraction=1", "--val-fraction is 1.0", None),
    ("FOLDER/a.txt --tokenizer=char", "--tokenizer", None),
    ("FOLDER/text --out-dir=FOLDER/run", "exists; remove it or choose another folder", None),
    ("FOLDER/a.txt", "is not UTF-8", write(**{"a.txt": b"\xff\xfe"})),
    ("FOLDER/a.jsonl", "line 1 has 67,108,864 characters or more", fill("a.jsonl", 1 << 26)),
]
for content, words in (
    (b'{"text": "x"}\n{"text', "line 2 is not JSON"),
    (b'{"text": "x"}\n[1]', "line 2 is not a JSON object"),
    (b'{"text": "a"}\n{"body": "x", "id": 1}', "2 has no text in column 'text'; choose --column"),
    (b'{"text": ""}', "the sources have 0 tokens"),
):
    PREPARE.append(("FOLDER/a.jsonl", words, write(**{"a.jsonl": content})))
TABLES = {train: TRAIN, sample: SAMPLE, export: EXPORT, prepare: PREPARE}
CASES = [(program, *case) for program, cases in TABLES.items() for case in cases]


def snapshot(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize(("program", "options", "words", "change"), CASES)
def test_one_line_exit_code_2_and_no_changes(
    trained, tmp_path, monkeypatch, capsys, program, options, words, change
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "folder"
    shutil.copytree(trained, folder)
    if change:
        change(folder)
    options = options.replace("FOLDER", str(folder)).split()
    if program is prepare:
        options = ["--tokenizer=byte", f"--out-dir={folder / 'new'}", *options]
    elif program is export:
        options = [str(folder / "run"), *options]
    elif program is sample:
        options = ["--device=cpu", f"--out-dir={folder / 'run'}", *options]
    elif "--resume" not in options:
        base = ["--preset=shakespeare-char", f"--data={folder / 'text'}", *SIZES, *CPU, *SHORT]
        options = [*base, f"--out-dir={folder / 'new'}", *options]
    before = snapshot(folder)
    assert program.main(options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    name = program.__name__ if "." in program.__name__ else f"{program.__name__}.py"
    assert line.startswith(f"{name}: ")
    assert words.replace("FOLDER", str(folder)) in line
    after = snapshot(folder)
    assert {path: after.get(path) for path in before} == before
    created = {path.relative_to(folder).as_posix() for path in after.keys() - before.keys()}
    assert created <= ({"new", "new/lock", "run/lock"} if program is train else set())
