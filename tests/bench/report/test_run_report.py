"""The page of a run: complete, its own numbers, and closed to scripts from a run's files."""

import json
import re
import shutil
from html import escape, unescape

import pytest
import torch

from bench.report import __main__ as report
from bench.report import run_report
from bench.report.run_report import attention_maps
from gpt.generation.load import load_model
from tests.runs import metrics, run

HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&$\\x$\x00\ud800"


def written(folder, *options):
    assert report.main([str(folder), *options]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


def texts(page, tag):
    return [unescape(text) for text in re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", page, re.DOTALL)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "out"
    assert run(folder, "--sample=12", "--bias") == 0
    return folder


def test_the_page_has_the_numbers_of_the_run_and_no_script(finished):
    page = written(finished)
    summary = json.loads((finished / "summary.json").read_text())
    values = dict(zip(texts(page, "dt"), texts(page, "dd"), strict=True))
    assert values["best validation loss"] == f"{summary['best_val_loss']:.4f}"
    assert values["tokens per second"] == f"{summary['tokens_per_second']:,.0f}"
    assert values["peak memory, bytes"] == f"{summary['peak_memory_bytes']:,}"
    evaluated = [line for line in metrics(finished) if "val_loss" in line]
    for line in evaluated:
        assert f"step {line['step']}, validation loss {line['val_loss']:.4f}" in texts(page, "p")
    assert texts(page, "pre")[:-1] == [line["sample"] for line in reversed(evaluated)]
    assert "linear_cross_entropy" in texts(page, "td")
    assert set(texts(page, "b")) == {  # what differs from the preset
        *("12", "8", "2", "16", "True", str(finished.parent / "text"), "4", "1"),
        *("cpu", "float32", str(finished)),
    }
    images = re.findall(r'<img alt="[^"]*" src="data:image/svg\+xml;base64,[\w+/=]*">', page)
    assert len(images) == len(re.findall("src=|href=", page)) == 3  # loss, time, attention
    assert not re.search("<(script|link|iframe|object|a )|http(?!-equiv)", page)
    assert "default-src 'none'" in page


def test_the_attention_maps_are_those_of_the_heads(finished):
    assert "abcab" in texts(written(finished, "--prompt=abcab"), "pre")
    model, tokenizer, _ = load_model(finished, "best", None, "cpu")
    tokens = torch.from_numpy(tokenizer.encode("abcab"))[None]  # (1, T)
    maps = attention_maps(model, tokens)
    assert len(maps) == 4  # layers x heads
    x = model.token_embedding_table(tokens) + model.position_embedding_table(torch.arange(5))
    x = model.blocks[0].ln1(x)
    for head, weights in zip(model.blocks[0].sa.heads, maps[:2], strict=True):
        scores = head.query(x) @ head.key(x).mT / head.key(x).shape[-1] ** 0.5
        wei = torch.where(torch.ones(5, 5).tril() == 1, scores, -torch.inf).softmax(-1)[0]
        assert torch.allclose(weights, wei, atol=1e-6)
    words = ["$\\x", "\x00", "\ud800", "世", "\n"]  # any text can be drawn
    figure = run_report.draw_maps(maps, words, n_head=2)
    run_report.data_uri(figure)
    assert torch.equal(torch.from_numpy(figure.axes[3].images[0].get_array().data), maps[3])
    assert figure.axes[3].get_title() == "layer 2, head 2"


def test_text_from_a_run_stays_text(finished, tmp_path):
    """Nothing in a run's files becomes an element, an attribute or a wrong number."""
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"preset": HOSTILE, "data": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}}
    summary = {"best_val_loss": HOSTILE, "steps": 10**400, "kernels": {HOSTILE: HOSTILE}}
    summary |= {"versions": {HOSTILE: HOSTILE}, "parameters": True, "device": [HOSTILE]}
    lines = [
        {"step": 1, "val_loss": 2.0, "sample": HOSTILE},
        {"step": 10**400, "val_loss": 3.0, "sample": "too far"},
        {"step": 2, "loss": HOSTILE, "val_loss": [HOSTILE], "sample": {HOSTILE: 1}},
        {"step": 3, "loss": 1e300, "milliseconds": -1e18},
    ]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = written(folder, "--prompt=abc")
    assert texts(page, "pre")[0] == HOSTILE[:-2] + "\ufffd\ufffd"
    assert texts(page, "dd") == []
    for part in ("</title><", "<script", "<img src", "\"'>"):
        assert part not in page
    assert page.count(escape("<script>")) >= 10
    assert not re.search("[\x00-\x08]", page)


def test_a_run_that_has_not_ended_has_a_page(finished, tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "config.json does not exist" in capsys.readouterr().err
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(finished / name, tmp_path / name)
    page = written(tmp_path)
    assert "the run has not ended" in page
    assert "best.json does not exist" in page
    (tmp_path / "metrics.jsonl").unlink()
    page = written(tmp_path)
    assert "No training step was recorded." in page
    assert "give --prompt TEXT" in page
