"""The bounds of memory that docs/reliability.md states for the commands."""

import json
import resource

import pytest

import sample
from gpt.config.model import ModelConfig
from gpt.data import prepare
from gpt.data.tokenizers import ByteTokenizer
from gpt.files import Folder
from gpt.models.packed import GPT
from gpt.pretrained import export
from gpt.runs import checkpoint
from gpt.runs.portable_state import portable_state
from kernels.torch_ops import OPS
from tests.runs import in_child, save_weights

MB = 1_000_000
FIXED = 60 * MB  # of buffers, libraries that are imported late, and the allocator


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def growth(folder, program):
    """Bytes by which the memory of a fork grows in `program()`, which returns an exit code."""

    def measure():
        before = peak()
        code = program()
        (folder / "growth").write_text(str(peak() - before))
        return code

    assert in_child(measure) == 0
    return int((folder / "growth").read_text())


def test_preparing_a_collection_takes_no_more_memory_if_it_is_larger(tmp_path):
    line = json.dumps({"text": "some words of a document " * 40}) + "\n"
    used = []
    for documents in (4_000, 40_000):  # 40 MB, and files of tokens of 80 MB
        (tmp_path / "a.jsonl").write_text(line * documents)
        options = ["--tokenizer=byte", f"--out-dir={tmp_path / str(documents)}"]
        arguments = [str(tmp_path / "a.jsonl"), *options]
        used.append(growth(tmp_path, lambda arguments=arguments: prepare.main(arguments)))
    assert used[1] < used[0] + FIXED / 6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a model of 80 MB."""
    folder = tmp_path_factory.mktemp("run")
    sizes = {"n_layer": 6, "n_head": 8, "n_embd": 512, "block_size": 32, "vocab_size": 256}
    gpt2 = {"qkv_bias": True, "head_bias": False, "tied_head": True, "activation": "gelu"}
    model = GPT(ModelConfig(**sizes, **gpt2), OPS)
    model.initialise()
    save_weights(folder, model.config, ByteTokenizer(), portable_state(model))
    return folder


def test_a_checkpoint_is_written_without_another_copy(tmp_path, run):
    _, tensors = checkpoint.load(run, "best")
    weights = {name: tensor.clone() for name, tensor in tensors["weights"].items()}

    def program():
        with Folder(tmp_path) as folder:
            checkpoint.save(folder, {"best": ("weights",)}, {"weights": weights}, {"step": 0})
        return 0

    assert sum(tensor.nbytes for tensor in weights.values()) > 70 * MB
    assert growth(tmp_path, program) < FIXED


COMMANDS = {  # and how often they hold the weights, the mapped file included
    "sample": (lambda run, folder: sample.main([f"--out-dir={run}", "--max-new-tokens=9"]), 2),
    "export": (lambda run, folder: export.main([str(run), str(folder / "out")]), 3),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_hold_the_weights_a_few_times(tmp_path, run, name):
    program, copies = COMMANDS[name]
    size = sum(path.stat().st_size for path in run.glob("*.safetensors"))
    assert growth(tmp_path, lambda: program(run, tmp_path)) < copies * size + FIXED
