"""The scores of a text against their definitions, in fp64 one token at a time."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from bench.recipes import evaluate
from gpt.data.tokenizers import CharTokenizer
from gpt.models.packed import GPT
from gpt.pretrained.init_from import load_pretrained
from gpt.runs.portable_state import portable_state
from gpt.training.evaluation import text_metrics
from gpt.training.precision import Precision
from kernels.torch_ops import OPS
from tests.gpt.configs import LECTURE, randomise
from tests.runs import save_weights

LETTERS = CharTokenizer(" abcdeé世")
CPU = torch.device("cpu")
FP32 = Precision(CPU, torch.float32)
TEXT = "a bé世d cab 世édé babe"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, as far as it is needed to load its model."""
    path, config = tmp_path_factory.mktemp("run"), replace(LECTURE, vocab_size=LETTERS.vocab_size)
    save_weights(path, config, LETTERS, portable_state(randomise(GPT(config, OPS))))
    return path


@pytest.mark.parametrize("implementation", ["torch", "reference"])
def test_the_loss_of_a_text_is_the_mean_over_its_tokens(folder, tmp_path, capsys, implementation):
    path = tmp_path / "text"
    path.write_text(TEXT, encoding="utf-8")
    options = [str(folder), f"--text={path}", "--device=cpu", f"--kernels={implementation}"]
    assert evaluate.main([*options, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    model, tokenizer, _ = load_pretrained(str(folder), OPS, CPU)
    tokens, block, count = tokenizer.encode(TEXT), model.double().config.block_size, len(TEXT)
    loss = 0.0
    for place in range(1, count):
        start = (place - 1) // block * block  # of its window
        logits = model(torch.from_numpy(tokens[None, start:place]))[0][0, -1]
        loss -= logits.log_softmax(0)[tokens[place]].item() / (count - 1)
    assert scores["tokens"] == count == 20
    assert scores["bytes"] == count + 3 + 2 * 2 == len(TEXT.encode())  # three é, two 世
    assert scores["loss"] == pytest.approx(loss, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    bits = loss / math.log(2) * count / scores["bytes"]
    assert scores["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert evaluate.main(options) == 0
    line = f"{path}: loss {scores['loss']:.4f} nats per token, perplexity "
    assert capsys.readouterr().out.startswith(line)


def test_a_perplexity_too_large_for_a_float_is_infinite(folder):
    model, tokenizer, _ = load_pretrained(str(folder), OPS, CPU)
    model.lm_head.weight.data *= 1e6
    scores = text_metrics(model, tokenizer, TEXT, model.config.block_size, FP32)
    assert math.log(sys.float_info.max) < scores["loss"] < scores["perplexity"] == math.inf
