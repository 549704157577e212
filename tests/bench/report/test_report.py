"""Tables come from figures alone, and a table that differs from its figures is found."""

import json
import re

import pytest

from bench import results_file, workloads
from bench.cases import GPT2, LECTURE, Case
from bench.report import __main__ as report
from bench.report import pictures, tables, targets
from bench.workloads import GPT2_64K

CEILINGS = {"copy_bytes_per_second": 4e12, "matmul_flops_per_second": 8e14}
CARD = {"name": "Card 9000", "driver": "580.1", "torch": "2.11.0", "triton": "3.6.0"}
ALL_TABLES = (*tables.TABLES, *tables.PROGRAMS, "pictures")
NORM = Case("layer_norm", GPT2_64K)
ATTENTION = Case("attention", GPT2)


def _row(case, direction, rival, microseconds, **more):
    work = workloads.work(case)[direction]
    seconds = microseconds * 1e-6
    floor = max(work.bytes / 4e12, work.flops / 8e14)
    row = {
        "operation": case.operation,
        "shape": workloads.shape(case),
        "precision": case.precision,
        "pass": direction,
        "rival": rival,
        "median_us": microseconds,
        "p20_us": microseconds - 1,
        "p80_us": microseconds + 1,
        "rounds": 50,
        "host_us": 20.0,
        "gb_s": work.bytes / seconds / 1e9,
        "ceiling": floor / seconds,
        "commit": "abc",
        "date": "2026-11-21",
    }
    if work.flops:
        row["tflop_s"] = work.flops / seconds / 1e12
    return row | more


def _result(*rows, name="Card 9000", date="2026-11-21"):
    stages = {"parity": {"state": "passed", "says": "10 passed", "commit": "abc", "date": date}}
    return {
        "schema": 1,
        "date": date,
        "card": CARD | {"name": name},
        "ceilings": CEILINGS,
        "stages": stages,
        "rows": list(rows),
    }


@pytest.fixture
def root(tmp_path):
    """A repository with a README and a page that have room for every table."""
    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    marked = "\n\n".join(f"<!-- begin {name} -->\n<!-- end {name} -->" for name in ALL_TABLES)
    (tmp_path / "README.md").write_text(
        "# Title\n\n<!-- begin peers -->\nold\n<!-- end peers -->\n\nEnd.\n"
    )
    (tmp_path / "docs" / "benchmarks.md").write_text(f"Before.\n\n{marked}\n\nAfter.\n")
    (tmp_path / "docs" / "other.md").write_text("Nothing generated here.\n")
    return tmp_path


def _write(root, result):
    path = (
        root / "bench" / "results" / results_file.file_name(result["card"]["name"], result["date"])
    )
    results_file.write(path, result)


# --- targets --------------------------------------------------------------------------------------


def _target(case, direction, measure_of):
    (target,) = [
        one
        for one in targets.TARGETS
        if one.case == case and one.direction == direction and one.measure is measure_of
    ]
    return target


def _sdpa_target(direction):
    (target,) = [
        one for one in targets.TARGETS if one.case == ATTENTION and one.direction == direction
    ]
    return target


def test_a_ratio_is_taken_to_the_fastest_of_its_rivals():
    rows = [
        _row(ATTENTION, "forward", "triton", 100.0),
        _row(ATTENTION, "forward", "sdpa flash", 140.0),
        _row(ATTENTION, "forward", "sdpa cudnn", 110.0),
        _row(ATTENTION, "forward", "reference", 50.0),  # not an SDPA backend
        _row(ATTENTION, "backward", "sdpa cudnn", 10.0),  # another pass
        _row(Case("attention", LECTURE), "forward", "sdpa cudnn", 10.0),  # another shape
    ]
    verdict = targets.evaluate(_sdpa_target("forward"), rows)
    assert verdict.value == pytest.approx(1.1)
    assert verdict.against == "sdpa cudnn"
    assert verdict.reached


def test_a_target_that_is_missed_says_so():
    rows = [
        _row(ATTENTION, "backward", "triton", 100.0),
        _row(ATTENTION, "backward", "sdpa cudnn", 79.0),
    ]
    assert targets.evaluate(_sdpa_target("backward"), rows).reached is False


@pytest.mark.parametrize("rivals", [[], ["triton"], ["sdpa cudnn"], ["triton", "torch"]])
def test_a_target_without_both_sides_is_not_measured(rivals):
    rows = [_row(ATTENTION, "forward", rival, 100.0) for rival in rivals]
    verdict = targets.evaluate(_sdpa_target("forward"), rows)
    assert (verdict.value, verdict.reached) == (None, None)


def test_a_share_of_the_ceiling_needs_no_rival():
    target = _target(NORM, "forward", targets.share_of_ceiling)
    least = 2 * 65_536 * 768 * 2 / 4e12 * 1e6  # microseconds
    assert targets.evaluate(target, [_row(NORM, "forward", "triton", least / 0.9)]).reached
    assert not targets.evaluate(target, [_row(NORM, "forward", "triton", least / 0.8)]).reached


def test_memory_is_compared_where_it_was_measured():
    case = Case("linear_cross_entropy", GPT2)
    rows = [
        _row(case, "both", "triton", 100.0, peak_mb=50.0),
        _row(case, "both", "torch", 100.0, peak_mb=450.0),
    ]
    verdicts = [targets.evaluate(one, rows) for one in targets.TARGETS if one.case == case]
    assert sorted(verdict.value for verdict in verdicts) == [1, 9]


def test_every_target_is_of_a_case_that_is_timed():
    cases = [(case.operation, workloads.shape(case), case.precision) for case in workloads.CARD]
    for target in targets.TARGETS:
        case = target.case
        assert (case.operation, workloads.shape(case), case.precision) in cases
        assert target.direction in workloads.passes(case)


def test_every_headline_is_of_a_case_that_is_timed():
    cases = [(case.operation, workloads.shape(case)) for case in workloads.CARD]
    for _, case in tables.HEADLINES:
        assert (case.operation, workloads.shape(case)) in cases


# --- tables ---------------------------------------------------------------------------------------


def test_without_figures_every_table_stands_and_says_not_measured(root):
    assert report.main([], root) == 0
    page = (root / "docs" / "benchmarks.md").read_text()
    for name in ALL_TABLES:
        table = page.partition(f"<!-- begin {name} -->")[2].partition(f"<!-- end {name} -->")[0]
        assert "not measured" in table
    assert page.startswith("Before.\n\n")
    assert page.endswith("\n\nAfter.\n")
    readme = (root / "README.md").read_text()
    assert "old" not in readme
    assert readme.startswith("# Title\n\n")
    assert readme.endswith("\n\nEnd.\n")
    assert not (root / "docs" / "pictures").exists()
    assert report.main(["--check"], root) == 0


def test_the_best_peer_is_named_with_its_ratio(root):
    rows = [
        _row(NORM, "backward", rival, time)
        for rival, time in (("triton", 100.0), ("torch", 150.0), ("torch.compile", 140.0))
    ]
    _write(root, _result(*rows))
    report.main([], root)
    readme = (root / "README.md").read_text()
    line = next(line for line in readme.splitlines() if line.startswith("| LayerNorm"))
    assert "| not measured | 1.40x torch.compile | not measured | not measured |" in line
    assert "Card 9000, driver 580.1" in readme
    assert "commit abc" in readme
    assert "copy 4.00 TB/s, bf16 product 800 TFLOP/s" in readme


def test_every_figure_is_in_the_long_table(root):
    row = _row(ATTENTION, "both", "triton", 1234.5, kernels=["a_kernel|with_a_bar"])
    _write(root, _result(row))
    report.main([], root)
    page = (root / "docs" / "benchmarks.md").read_text()
    line = next(line for line in page.splitlines() if "1,234.5" in line)
    assert "1,233.5-1,235.5" in line
    assert "`a_kernel\\|with_a_bar`" in line


def test_check_finds_a_table_that_is_not_that_of_its_figures(root, capsys):
    _write(root, _result(_row(NORM, "forward", "triton", 60.0)))
    assert report.main(["--check"], root) == 1
    assert "README.md" in capsys.readouterr().out
    assert "old" in (root / "README.md").read_text()  # it changes nothing
    report.main([], root)
    assert report.main(["--check"], root) == 0
    readme = root / "README.md"
    readme.write_text(readme.read_text().replace("800 TFLOP/s", "801 TFLOP/s"))
    assert report.main(["--check"], root) == 1


def test_check_finds_a_picture_that_is_not_that_of_its_figures(root, capsys):
    result = _result(
        _row(NORM, "both", "triton", 60.0),
        _row(NORM, "both", "torch", 90.0),
        _row(ATTENTION, "both", "triton", 60.0),
    )
    _write(root, result)
    report.main([], root)
    drawn = sorted(path.name for path in (root / "docs" / "pictures").iterdir())
    assert drawn == ["card-9000-ceiling.svg", "card-9000-speedup.svg"]
    assert "(pictures/card-9000-speedup.svg)" in (root / "docs" / "benchmarks.md").read_text()
    picture = root / "docs" / "pictures" / "card-9000-speedup.svg"
    assert pictures.is_current(picture, result)
    picture.write_text(picture.read_text().replace(pictures.digest(result), "0" * 16))
    assert report.main(["--check"], root) == 1
    assert "card-9000-speedup.svg" in capsys.readouterr().out


def test_the_rungs_of_the_ladder_have_a_table_and_a_picture(root):
    rows = [
        _row(NORM, "forward", "1_naive", 6000.0),
        _row(NORM, "forward", "PyTorch", 80.0),
        _row(NORM, "both", "PyTorch", 200.0),
        _row(ATTENTION, "forward", "4_tiles", 100.0),
    ]
    parts = {"layer_norm": {"figures": rows[:3]}, "attention": {"figures": rows[3:]}, "x": {}}
    result = _result()
    result["stages"]["ladder"] = result["stages"]["parity"] | {"parts": parts}
    _write(root, result)
    report.main([], root)
    page = (root / "docs" / "benchmarks.md").read_text()
    assert "| layer_norm | 65,536 x 768, bf16 | forward | 1_naive | 6,000.0 |" in page
    assert "(pictures/card-9000-ladder.svg)" in page
    assert rows[3] not in result["rows"]  # a rung is no peer
    picture = root / "docs" / "pictures" / "card-9000-ladder.svg"
    before = pictures.digest(result)
    assert pictures.is_current(picture, result)
    rows[3]["ceiling"] = 0.5
    assert pictures.digest(result) != before


def test_figures_of_two_days_add_up_and_two_cards_stand_apart(root):
    old, new = (_row(NORM, "forward", "triton", time) for time in (60.0, 50.0))
    kept = _row(NORM, "backward", "triton", 70.0)
    _write(root, _result(old, kept, date="2026-11-20"))
    _write(root, _result(new))
    _write(root, _result(kept, name="Another"))
    another, first = results_file.of_every_card(root / "bench" / "results")
    assert another["card"]["name"] == "Another"
    assert {row["pass"]: row["median_us"] for row in first["rows"]} == {
        "forward": 50.0,
        "backward": 70.0,
    }


def test_the_ledger_is_summed_up_by_kernel(root):
    key = "layer_norm_forward_kernel(*bf16/16) C=768"
    row = {"target": "90", "key": key, "registers": 40, "shared": 1024}
    row |= {"spills": 0, "atomics": 0, "tensor": {}}
    more = row | {"key": "layer_norm_forward_kernel(*fp32/16) C=768", "registers": 48}
    (root / "bench" / "ledger.json").write_text(
        json.dumps({"3.6.0": [], "3.10.0": [row, more], "3.9.0": []})
    )
    report.main([], root)
    page = (root / "docs" / "benchmarks.md").read_text()
    assert "| triton 3.10.0 | sm_90 |" in page
    assert "| `layer_norm_forward_kernel` | 48 registers, 1,024 bytes |" in page


def test_steps_are_told_by_preset_the_fastest_first():
    row = {"preset": "gpt2", "kernels": "torch", "compile": True, "step": "graph"}
    row |= {"batch_size": 32, "block_size": 1024, "milliseconds": 60.0, "mfu": 0.478}
    row |= {"tokens_per_second": 546_133.3, "peak_memory_bytes": 15 * 2**30}
    ours = row | {"kernels": "triton", "compile": False, "milliseconds": 55.387}
    parts = {name: {"figures": one} for name, one in (("slow", row), ("fast", ours))}
    parts["nanogpt"] = {"state": "failed", "says": "no"}
    state = {"commit": "of the stage", "date": "2026-11-22"}
    result = _result() | {"stages": {"step": {"parts": parts, **state}}}
    assert "2026-11-22, commit of the stage;" in tables.steps([result], None)
    assert tables.steps([result], None).splitlines()[-2:] == [
        "| gpt2 | 32 x 1,024 | triton, graph | 55.39 | 1.00x | 546,133 | 48% | 15.0 |",
        "| gpt2 | 32 x 1,024 | torch compiled, graph | 60.00 | 1.08x | 546,133 | 48% | 15.0 |",
    ]


def test_the_time_to_a_loss_is_told_by_run():
    figures_of_it = {"val_loss": 1.46951, "step": 1050, "seconds": 5.123}
    parts = {"speedrun, seed 1": {"figures": figures_of_it}, "late": {"state": "no time"}}
    state = {"commit": "abc", "date": "2026-11-22"}
    result = _result() | {"stages": {"loss": {"parts": parts, **state}}}
    last = tables.losses([result], None).splitlines()[-1]
    assert last == "| speedrun, seed 1 | 1.4695 | 1,050 | 5.12 |"


def test_the_ledger_is_summed_up_in_four_lines(root):
    row = {"target": "90", "key": "", "spills": 1, "atomics": 0, "tensor": {"HGMMA": 12, "HMMA": 3}}
    rows = [row, row | {"spills": 2, "atomics": 5, "tensor": {}}, row | {"target": "100"}]
    assert tables.summed_up([], ("3.9.0", rows)).splitlines()[2:] == [
        "| kernels, a tile and a dtype each | 2 | 1 |",
        "| spilled registers | 3 | 1 |",
        "| atomic instructions | 5 | 0 |",
        "| tensor-core instructions | 15 | 15 |",
    ]


def test_a_program_brings_its_own_table(root):
    page = root / "docs" / "other.md"
    page.write_text("<!-- begin quickstart -->\n<!-- end quickstart -->\n")
    result = {"schema": 1, "table": "quickstart", "machine": "two cores", "commit": "abc"}
    rows = [{"who": "this", "seconds": 12.5}, {"who": "another", "seconds": 66}]
    results_file.write(
        root / "bench" / "results" / "quickstart-2026-11-21.json",
        result | {"date": "2026-11-21", "rows": rows},
    )
    assert report.main([], root) == 0
    assert "two cores, 2026-11-21, commit abc\n\n| who | seconds |" in page.read_text()
    assert "| this | 12.5 |\n| another | 66 |" in page.read_text()


def test_what_two_cores_did_is_drawn_from_its_figures(root):
    row = {"model": "lecture", "batch": 1}
    tables_of = {
        "quickstart": [
            {
                "nanoGPT's loss": 1.9,
                "nanoGPT, seconds": 90.0,
                "quickstart, seconds to that loss": 15.0,
            }
        ],
        "decode": [
            row | {"who": "lecture", "tokens/s": 20},
            row | {"who": "between", "tokens/s": 30},
            row | {"who": "ours", "tokens/s": 300},
            row | {"batch": 8, "who": "not drawn", "tokens/s": 900},
        ],
    }
    for name, rows in tables_of.items():
        result = {"schema": 1, "table": name, "machine": "two", "commit": "abc", "rows": rows}
        path = root / "bench" / "results" / f"{name}-2026-11-21.json"
        results_file.write(path, result | {"date": "2026-11-21"})
    assert report.main(["--check"], root) == 1
    assert report.main([], root) == 0
    assert report.main(["--check"], root) == 0
    drawn = (root / "docs" / "pictures" / "two-cores.svg").read_text()
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', drawn)]
    assert widths[1] / widths[0] == pytest.approx(15 / 90, abs=1e-3)
    assert widths[2] / widths[3] == pytest.approx(20 / 300, abs=1e-3)
    assert len(widths) == 4
    assert "not drawn" not in drawn


def test_curves_are_drawn_from_their_figures(root):
    rows = [
        {"step": step, "from scratch": f"{one}", "begun from python-docs": f"{other}"}
        for step, one, other in ((0, 9.0, 9.0), (10, 3.0, 2.5), (20, 2.0, 2.0), (40, 1.5, 1.0))
    ]
    result = {"schema": 1, "table": "exercises-finetune", "machine": "two", "commit": "abc"}
    path = root / "bench" / "results" / "exercises-finetune-2026-11-21.json"
    results_file.write(path, result | {"date": "2026-11-21", "rows": rows})
    assert report.main(["--check"], root) == 1
    assert report.main([], root) == 0
    assert report.main(["--check"], root) == 0
    drawn = (root / "docs" / "pictures" / "finetune.svg").read_text()
    curves = [
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall(r'points="([^"]+)"', drawn)
    ]
    for curve, losses in zip(curves, ([3.0, 2.0, 1.5], [2.5, 2.0, 1.0]), strict=True):
        (left, _), _, (right, _) = curve
        assert [(x - left) / (right - left) for x, _ in curve] == pytest.approx(
            [0, 1 / 3, 1], abs=1e-3
        )
        top, bottom = curves[0][0][1], curves[1][-1][1]  # of 3 and of 1
        heights = [3 - 2 * (y - top) / (bottom - top) for _, y in curve]
        assert heights == pytest.approx(losses, abs=0.01)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!-- begin peers -->\n", "`<!-- begin peers -->` has no `<!-- end peers -->`"),
        ("<!-- end peers -->\n", "does not fit the marker before it"),
        ("<!-- begin peers -->\n<!-- begin speed -->\n", "does not fit the marker before it"),
        ("<!-- begin peers -->\n<!-- end speed -->\n", "does not fit the marker before it"),
        ("<!-- begin speling -->\n<!-- end speling -->\n", "there is no table 'speling'"),
    ],
)
def test_markers_that_do_not_fit_are_an_error(root, capsys, text, says):
    (root / "docs" / "other.md").write_text(text)
    assert report.main([], root) == 1
    assert says in capsys.readouterr().out
    assert (root / "docs" / "other.md").read_text() == text


def test_the_pages_of_this_repository_are_current(capsys):
    assert report.main(["--check"]) == 0, capsys.readouterr().out
