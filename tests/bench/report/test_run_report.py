"""A run's page: whole, of its own figures, closed to a stranger's script, quiet in a browser."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.image import imread

from bench.report import __main__ as report
from bench.report import html
from bench.report.run_report import attention_maps
from gpt.runs.run_state import load_model
from tests.runs import metrics, run

VOID = ("meta",)
HOSTILE = "</title></script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&\x00\ud800"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Whole(HTMLParser):
    """Reads a page, and fails where an element is not closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.attributes, self.texts = [], set(), [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append((self.open[-1] if self.open else "", text))

    def text_of(self, tag):
        return [text for where, text in self.texts if where == tag]


def written(folder, *options):
    assert report.main([str(folder), *options]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "out"
    assert run(folder, "--sample=12", "--bias") == 0
    return folder


def test_the_page_has_the_figures_of_the_run(finished):
    found = Whole(written(finished))
    summary = json.loads((finished / "summary.json").read_text())
    said = dict(zip(found.text_of("dt"), found.text_of("dd"), strict=True))
    assert said["best validation loss"] == f"{summary['best_val_loss']:.4f}"
    assert said["tokens per second"] == f"{summary['tokens_per_second']:,.0f}"
    assert said["peak memory, bytes"] == f"{summary['peak_memory_bytes']:,}"
    points = found.text_of("title")
    evaluated = [line for line in metrics(finished) if "val_loss" in line]
    for line in evaluated:
        assert f"validation, step {line['step']}: {line['val_loss']:.4f}" in points
    assert found.text_of("pre")[:-1] == [line["sample"] for line in reversed(evaluated)]
    assert "linear_cross_entropy" in found.text_of("td")
    assert set(found.text_of("b")) == {  # what is not the preset's
        *("12", "8", "2", "16", "True", str(finished.parent / "text"), "4", "1"),
        *("cpu", "float32", str(finished)),
    }


def test_the_page_is_one_file_without_a_script(finished):
    found = Whole(written(finished))
    assert not found.seen & {"script", "link", "iframe", "object", "a", "img"}
    links = [value for name, value in found.attributes if name in ("href", "src")]
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "http" not in written(finished).replace("http-equiv", "")
    assert "default-src 'none'" in dict(found.attributes)["content"]


def test_the_maps_are_those_of_the_heads(finished):
    text = written(finished, "--prompt=abcab")
    found = Whole(text)
    pictures = [value for name, value in found.attributes if name == "href"]
    model, tokenizer, _ = load_model(finished, "best", None, "cpu")
    tokens = torch.from_numpy(tokenizer.encode("abcab"))[None]  # (1, T)
    x = model.token_embedding_table(tokens) + model.position_embedding_table(torch.arange(5))
    x = model.blocks[0].ln1(x)
    for head, picture in zip(model.blocks[0].sa.heads, pictures[:2], strict=True):
        scores = head.query(x) @ head.key(x).mT / head.key(x).shape[-1] ** 0.5
        wei = torch.where(torch.ones(5, 5).tril() == 1, scores, -torch.inf).softmax(-1)[0]
        pixels = imread(io.BytesIO(base64.b64decode(picture.partition(",")[2])), format="png")
        assert torch.allclose(torch.from_numpy(pixels[..., 3].copy()), wei, atol=0.51 / 255)
    assert len(attention_maps(model, tokens)) == len(pictures) == 4  # layers x heads
    assert "".join(found.text_of("pre")[-1:]) == "abcab"


def test_a_strangers_run_is_text(finished, tmp_path):
    """Whatever stands in a run's files, nothing of it becomes an element or a figure."""
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    usual = Whole(written(folder)).seen
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
    text = written(folder, "--prompt=abc")
    found = Whole(text)
    assert found.seen <= usual
    assert not any(name.startswith("on") for name, _ in found.attributes)
    assert HOSTILE[:-2] + "\ufffd\ufffd" in found.text_of("pre")
    assert found.text_of("dd") == []
    assert not re.search("[\x00-\x08]", text)


def test_a_run_that_has_not_ended_has_a_page(finished, tmp_path):
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(finished / name, tmp_path / name)
    text = written(tmp_path)
    assert "it has not ended" in text
    assert "best.json does not exist" in text
    (tmp_path / "metrics.jsonl").unlink()
    assert "Nothing was recorded." in written(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "config.json does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 5, [0, 1, 2, 3, 4, 5]),
        (1.1, 4.7, [1, 2, 3, 4, 5]),
        (0, 650, [0, 200, 400, 600, 800]),
        (3, 3, [1, 2, 3, 4, 5]),
        (-1e18, 1e18, [-1e18, -5e17, 0, 5e17, 1e18]),
    ],
)
def test_ticks_are_round_and_around_all(low, high, expected):
    assert html.ticks(low, high) == pytest.approx(expected)


def test_a_long_curve_keeps_its_ends():
    points = [(x, float(x)) for x in range(10_001)]
    drawn = Whole(html.chart({"loss": points}, "step", "nats"))
    line = next(value for name, value in drawn.attributes if name == "points").split()
    assert len(line) <= html.POINTS + 1
    ends = [[float(number) for number in point.split(",")] for point in (line[0], line[-1])]
    assert ends[0] == [html.LEFT, html.HEIGHT - html.BOTTOM]
    assert ends[1] == [html.WIDTH - 12, 24]


def test_a_browser_has_nothing_to_complain_of(finished, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    written(finished)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += ["--v=0", f"--user-data-dir={tmp_path}", "--dump-dom", "--window-size=412,900"]
    done = subprocess.run(
        [*command, (finished / "report.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    assert "What its heads look at" in done.stdout
    assert "CONSOLE" not in done.stderr
