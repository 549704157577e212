"""The ledger against kernels whose figures are known from their text, and against the launcher."""

import itertools
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import triton

from bench.cases import CASES
from bench.ledger import __main__ as ledger
from bench.ledger import compiled
from bench.ledger.loops import PIPES
from bench.ledger.rules import changes, findings
from bench.steps import STEPS
from tests.bench.samples import LENGTH, K, M, N

REPOSITORY = Path(__file__).resolve().parents[3]


def run(*arguments: str) -> subprocess.CompletedProcess:
    """A process of its own, in which kernels are compiled and not interpreted."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> dict:
    file = tmp_path_factory.mktemp("ledger") / "samples.json"
    done = run("-m", "tests.bench.samples", str(file))
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


def test_a_tile_of_16_bytes_per_thread_is_one_load_and_one_store(samples):
    row = samples["wide 90"]
    assert (row["loads"], row["stores"]) == ({"16": 1}, {"16": 1})
    assert findings(row) == []


def test_lost_divisibility_is_found_by_name_and_line(samples):
    row = samples["forgetful 90"]
    assert row["loads"] == {"2": 8}
    source = Path(__file__).with_name("samples.py").read_text()
    line = source[: source.index("def _copy_forgetful")].count("\n") + 3
    place = f"x_ptr at bench/samples.py:{line} by 2 bytes"
    assert findings(row) == [f"loads {place} at a time, where 16 are due"]


@pytest.mark.parametrize("name", ["shifted", "ragged", "small tile"])
def test_narrow_loads_of_narrow_data_are_not_blamed(samples, name):
    row = samples[f"{name} 90"]
    assert "16" not in row["loads"]
    assert findings(row) == []


def test_an_atomic_is_found(samples):
    (finding,) = findings(samples["atomic 90"])
    assert finding.startswith("has 1 atomic")


def test_a_spill_is_found(samples):
    row = samples["spilling 90"]
    assert row["registers"] == 255
    (finding,) = findings(row)
    assert finding.startswith(f"spills registers: {row['spills']}")


@pytest.mark.parametrize(("card", "instruction"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
def test_a_product_runs_on_the_tensor_cores_at_the_rate_of_its_size(samples, card, instruction):
    row = samples[f"product {card}"]
    assert list(row["tensor"]) == [instruction]
    operations_per_clock = {80: 2048, 90: 4096, 100: 8192}[card]
    assert row["loop"]["is_loop"]
    assert row["loop"]["cycles"]["tensor"] == 2 * M * N * K / operations_per_clock
    assert findings(row) == []
    assert findings(row | {"tensor": {}}) == [
        "has 1 matrix products, but no tensor-core instruction"
    ]


def test_a_product_of_fp32_is_not_for_tensor_cores(samples):
    row = samples["fp32 product 90"]
    assert (row["tensor"], row["products"]) == ({}, 0)


def test_the_loop_of_exponentials_takes_16_of_them_per_cycle(samples):
    loop = samples["exponentials 90"]["loop"]
    elements = loop["bytes"] / 4  # of one turn, which the assembler may have unrolled
    assert elements % LENGTH == 0
    assert loop["cycles"]["exponential"] == elements / 16
    assert loop["overlapped"] == loop["bytes"] / loop["cycles"]["exponential"]


def test_shared_memory_is_held_against_every_card_that_runs_the_code(samples):
    row = samples["deep product 80"]
    stages = 5  # of six, one is in use
    assert row["shared"] == stages * 2 * (M * K + K * N)
    assert findings(row) == [
        f"needs {row['shared']:,} bytes of shared memory; sm_{card} has 101,376"
        for card in (86, 89)
    ]


def test_an_amd_kernel_is_compiled(samples):
    for name in ("wide", "product"):
        row = samples[f"{name} gfx942"]
        assert row["registers"] > 0
        assert findings(row) == []


# --- of the shipped kernels -----------------------------------------------------------------------

FAMILY = "cross_entropy"  # with and without the head


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A family of kernels for one architecture, and what --check said of it."""
    file = tmp_path_factory.mktemp("ledger") / "rows.json"
    options = ["--arch", "90", "--kernel", FAMILY, "--check", "--json", str(file)]
    done = run("-m", "bench.ledger", *options)
    return done, json.loads(file.read_text())


def test_the_committed_ledger_is_of_these_kernels(family):
    done, rows = family
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows


def test_every_launch_is_in_the_ledger_with_its_tile(family):
    """Recorded here, where kernels are interpreted: the launcher is asked twice, independently."""
    _, rows = family
    cases = [case for case in CASES if FAMILY in case.operation]
    for case in (*cases, *STEPS):
        of_case = [row for row in rows if str(case) in row["cases"]]
        for *_, one in compiled.record(case, 90):
            name = f"{compiled.name(one)}("
            if FAMILY not in name:
                continue
            options = {f"{key}={value}" for key, value in one.options.items()}
            options -= {"enable_fp_fusion=True"}
            assert any(
                row["key"].startswith(name) and options <= set(row["key"].split())
                for row in of_case
            ), f"{name} {options}"


def test_whole_steps_launch_only_what_the_ledger_holds():
    """By name, constants and tile, on every architecture."""
    held = defaultdict(list)  # (target, case) -> the words of each kernel
    for row in json.loads(ledger.COMMITTED.read_text())["3.6.0"]:
        name, _, rest = row["key"].partition("(")
        for case in row["cases"]:
            held[row["target"], case].append({name, *rest.split()})
    for step, target in itertools.product(STEPS, ledger.TARGETS):
        for *_, one in compiled.record(step, int(target)):
            constants = {f"{k}={getattr(v, '__name__', v)}" for k, v in one.options.items()}
            wanted = constants - {"enable_fp_fusion=True", "maxnreg=None"} | {compiled.name(one)}
            assert any(wanted <= words for words in held[target, str(step)]), (step, wanted)


def test_a_tile_that_does_not_compile_is_left_out_of_tuning():
    """Triton asserts that warps are a power of two, and a neighbour of four is three."""
    code = """
from bench.cases import LECTURE, Case
from bench.prove.stages.tune import is_worth_timing
for warps in (3, 4):
    tile = (512, 512, warps, 128)
    print(is_worth_timing(Case("layer_norm", LECTURE), "layer_norm_backward", tile, 90))
"""
    done = run("-c", code)
    assert done.stdout.split() == ["False", "True"], done.stderr


# --- the rules and the command --------------------------------------------------------------------


def row(**figures) -> dict:
    return {
        "target": "90",
        "key": "layer_norm_forward_kernel(*bf16/16) BLOCK=512 num_warps=4",
        "cards": [90],
        "cases": ["layer_norm gpt2 bf16"],
        "shared": 0,
        "narrow": [],
        "registers": 40,
        "spills": 0,
        "blocks": 16,
        "occupancy": 1.0,
        "tensor": {},
        "atomics": 0,
        "exp2": 0,
        "loads": {"16": 1},
        "stores": {"16": 1},
        "products": 0,
        "instructions": 100,
        "loop": {},
    } | figures


def test_changes_are_told_figure_by_figure():
    place = f"90 {row()['key']}"
    assert changes([row()], [row(loop=None, cases=[])]) == []
    assert changes([row()], []) == [f"{place}: is new"]
    assert changes([], [row()]) == [f"{place}: is gone"]
    assert changes([row(registers=48, loads={"8": 2})], [row()]) == [
        f"{place}: loads {{'16': 1}} -> {{'8': 2}}, registers 40 -> 48"
    ]


def test_what_does_not_compile_is_a_finding():
    failed = {"target": "90", "key": "x", "narrow": [], "cards": [90], "cases": [], "error": "why"}
    assert findings(failed) == ["does not compile: why"]
    assert "x: does not compile: why" in ledger.table([failed, row()])


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command with a ledger of its own, and rows instead of a compiler."""
    monkeypatch.setattr(ledger, "COMMITTED", tmp_path / "ledger.json")

    def command(rows, *arguments):
        monkeypatch.setattr(ledger, "collect", lambda targets, kernels: rows)
        return ledger.main(list(arguments))

    return command


def test_a_change_must_be_written_to_pass_the_check(command, capsys):
    assert command([row()], "--write") == 0
    assert command([row()], "--check") == 0
    assert command([row(registers=48)], "--check") == 1
    assert "registers 40 -> 48" in capsys.readouterr().out
    assert command([row(registers=48)], "--write") == 0
    assert command([row(registers=48)], "--check") == 0


def test_a_broken_rule_fails_whatever_is_committed(command, capsys):
    command([row(spills=3)], "--write")
    assert command([row(spills=3)], "--check") == 1
    assert "spills registers" in capsys.readouterr().out


def test_another_version_of_triton_is_held_to_the_rules_alone(command, capsys, monkeypatch):
    command([row()], "--write")
    monkeypatch.setattr(triton, "__version__", "3.99.0")
    assert command([row(registers=48)], "--check") == 0
    assert "triton 3.99.0: only the rules are checked" in capsys.readouterr().out
    assert command([row(atomics=1)], "--check") == 1


def test_a_part_is_written_and_checked_without_touching_the_rest(command):
    other = row(key="attention_forward_kernel(*bf16/16) M=64 num_warps=4", target="80", cards=[80])
    command([other, row()], "--write")
    assert command([row()], "--check", "--kernel", "layer_norm") == 0
    assert command([row()], "--check", "--arch", "sm_90") == 0
    command([row(registers=48)], "--write", "--kernel", "layer_norm")
    assert command([other, row(registers=48)], "--check") == 0
    assert command([row(registers=48)], "--check") == 1  # the other is gone


def test_tables_show_the_figures_of_every_kernel(command, capsys):
    loop = {
        "is_loop": True,
        "instructions": 99,
        "cycles": dict.fromkeys(PIPES, 32.0) | {"tensor": 256.0, "issue": 99.0},
        "overlapped": 1.0,
        "serial": 256 / 384,
    }
    command([row(loop=loop)])
    assert "layer_norm_forward_kernel bf16 BLOCK=512 num_warps=4" in capsys.readouterr().out
    command([row(loop=loop)], "--loops")
    assert " 67%  layer_norm_forward_kernel" in capsys.readouterr().out


def test_an_unknown_architecture_is_refused_with_those_that_exist():
    done = run("-m", "bench.ledger", "--arch", "75")
    assert done.returncode == 2
    assert "75 is unknown; choose from 80, 86, 89, 90, 100, 120" in done.stderr
