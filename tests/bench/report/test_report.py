"""Tables and pictures come from the result files, and --check finds one that is out of date."""

import json
import re

import pytest

from bench import compare, results
from bench.report import __main__ as report
from bench.report import tables
from bench.timer import Ceilings, Samples
from bench.workloads.operations import GPT2, Case
from bench.workloads.timed import GPT2_64K

CEILINGS = Ceilings(copy_bytes_per_second=4e12, matmul_flops_per_second=8e14)
GPU = {"name": "GPU 9000", "driver": "580.1", "torch": "2.11.0", "triton": "3.6.0"}
MADE = {"commit": "abc", "date": "2026-11-21"}
NORM = Case("layer_norm", GPT2_64K)


def make_row(case, direction, implementation, *microseconds):
    samples = Samples([1e-6 * time for time in microseconds], host=1e-6)
    return compare.row(case, direction, implementation, samples, CEILINGS) | MADE


def write_gpu(root, *rows, name="GPU 9000", date="2026-11-21", **stages):
    state = {"state": "passed", "message": "10 passed", **MADE}
    stages = {stage: state | {"parts": parts} for stage, parts in stages.items()}
    result = {"schema": results.SCHEMA, "date": date, "stages": stages, "rows": list(rows)}
    result |= {"gpu": GPU | {"name": name}, "ceilings": CEILINGS._asdict()}
    results.write(root / "bench" / "results" / f"{name} {date}.json", result)


def written(root):
    assert report.main([], root) == 0
    assert report.main(["--check"], root) == 0
    return (root / "docs" / "page.md").read_text()


@pytest.fixture
def root(tmp_path):
    """A repository with a README of one table and a page of all tables."""
    for folder in ("bench/results", "bench/ledger", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    blocks = "\n\n".join(f"<!-- begin {n} -->\n<!-- end {n} -->" for n in tables.NAMES)
    (tmp_path / "README.md").write_text("<!-- begin peers -->\nold\n<!-- end peers -->\n")
    (tmp_path / "docs" / "page.md").write_text(f"Before.\n\n{blocks}\n\nAfter.\n")
    return tmp_path


def test_without_results_every_table_says_not_measured(root):
    page = written(root)
    for name in tables.NAMES:
        table = page.partition(f"<!-- begin {name} -->")[2].partition(f"<!-- end {name} -->")[0]
        assert "not measured" in table
    assert page.startswith("Before.\n\n")
    assert page.endswith("\n\nAfter.\n")
    assert "old" not in (root / "README.md").read_text()


def test_tables_have_the_newest_measurements_of_each_gpu(root):
    times = {"triton": 100.0, "torch": 150.0, "torch.compile": 140.0, "reference": 110.0}
    old, new = (make_row(NORM, "forward", "triton", time) for time in (60.0, 50.0))
    kept = [make_row(NORM, "backward", *one) for one in times.items()]
    both = make_row(Case("attention", GPT2), "both", "torch|flash", 1210.0, 1230.0, 1240.0)
    step = {"preset": "gpt2", "kernels": "torch", "compile": True, "step": "graph"}
    step |= {"batch_size": 32, "block_size": 1024, "milliseconds": 60.0, "mfu": 0.478}
    step |= {"tokens_per_second": 546_133.3, "peak_memory_bytes": 15 * 2**30}
    ours = step | {"kernels": "triton", "compile": False, "milliseconds": 55.387}
    kernel = {"preset": "gpt2", "kernel": "a_kernel", "launches": 12, "microseconds": 350.1}
    write_gpu(
        root,
        *(new, both),
        step={"slow": {"figures": step}, "fast": {"figures": ours}, "nanogpt": {"state": "failed"}},
        loss={"speedrun": {"figures": {"val_loss": 1.46951, "step": 1050, "seconds": 5.123}}},
        profile={"gpt2": {"figures": [kernel | {"share": 0.0875}]}},
    )
    write_gpu(root, old, *kept, date="2026-11-20")
    write_gpu(root, kept[0], name="Another")
    page = written(root)
    for line in (
        "| 1.40x torch.compile | not measured | not measured |",  # the best peer
        "GPU 9000, driver 580.1",
        "- Another, driver",
        "copy 4.00 TB/s, bf16 matrix product 800 TFLOP/s",
        "| forward | triton | 50.0 |",
        "| both | torch\\|flash | 1,230.0 | 1,218.0-1,236.0 |",
        "| gpt2 | 32 x 1,024 | triton, graph | 55.39 | 1.00x | 546,133 | 48% | 15.0 |\n"
        "| gpt2 | 32 x 1,024 | torch compiled, graph | 60.00 | 1.08x | 546,133 | 48% | 15.0 |",
        "| speedrun | 1.4695 | 1,050 | 5.12 |",
        "| gpt2 | `a_kernel` | 12 | 350 | 8.8% |",
        "| step | passed | 10 passed | abc |",
    ):
        assert line in page
    assert "| forward | triton | 60.0 |" not in page
    assert page.count("| backward | triton | 100.0 |") == 2


DAMAGED = {
    "rows": lambda result: result.pop("rows"),
    "row": lambda result: result["rows"][0].pop("median_us"),
    "text": lambda result: result["rows"][0].update(gb_s="fast"),
    "gpu": lambda result: result.update(gpu=["GPU"]),
    "date": lambda result: result.pop("date"),
    "schema": lambda result: result.update(schema=1),
}


@pytest.mark.parametrize("name", [*DAMAGED, "not JSON"])
def test_a_damaged_result_is_an_error_that_names_its_file(root, capsys, name):
    write_gpu(root, *(make_row(NORM, "both", *one) for one in (("triton", 60.0), ("torch", 90.0))))
    (path,) = (root / "bench" / "results").iterdir()
    result = results.read(path)
    DAMAGED.get(name, lambda result: None)(result)
    path.write_text(json.dumps(result)[name == "not JSON" :])
    before = (root / "README.md").read_text()
    assert report.main([], root) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bench.report: {path} ")
    assert (root / "README.md").read_text() == before


def test_a_table_or_picture_is_stale_when_its_results_change(root, capsys):
    rows = [make_row(NORM, "both", *one) for one in (("triton", 60.0), ("torch", 90.0))]
    write_gpu(root, *rows)
    written(root)
    write_gpu(root, make_row(NORM, "both", "triton", 61.0), rows[1])
    before = (root / "README.md").read_text()
    assert report.main(["--check"], root) == 1
    stale = capsys.readouterr().out.partition(";")[0]
    assert {"README.md", "docs/pictures/gpu-9000-speedup.svg"} <= set(re.split("[ ,]+", stale))
    assert (root / "README.md").read_text() == before  # it changes nothing


def test_the_pages_of_this_repository_are_current(capsys):
    assert report.main(["--check"]) == 0, capsys.readouterr().out
