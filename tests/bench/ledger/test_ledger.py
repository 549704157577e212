"""The ledger of kernels with known properties, and of the shipped kernels."""

import itertools
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import triton

from bench.ledger import __main__ as ledger
from bench.ledger import compiled
from bench.ledger.rules import changes, findings
from bench.workloads.operations import CASES, TOKENS, UPDATES
from bench.workloads.steps import STEPS
from tests.bench.ledger.samples import K, M, N

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
    done = run("-m", "tests.bench.ledger.samples", str(file))
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


def test_tile_of_16_bytes_per_thread_is_one_load_and_one_store(samples):
    row = samples["wide 90"]
    assert (row["loads"], row["stores"]) == ({"16": 1}, {"16": 1})
    assert findings(row) == []


def test_lost_divisibility_is_found_with_name_and_line(samples):
    row = samples["forgetful 90"]
    assert row["loads"] == {"2": 8}
    source = Path(__file__).with_name("samples.py").read_text()
    line = source[: source.index("def _copy_forgetful")].count("\n") + 3
    (finding,) = findings(row)
    assert finding.startswith("loads x_ptr at ")  # the folder is that of the cached kernel
    assert finding.endswith(f"/samples.py:{line} by 2 bytes at a time instead of 16")


@pytest.mark.parametrize("name", ["shifted", "ragged", "small tile"])
def test_narrow_loads_of_narrow_rows_are_allowed(samples, name):
    row = samples[f"{name} 90"]
    assert "16" not in row["loads"]
    assert findings(row) == []


def test_atomic_is_found(samples):
    (finding,) = findings(samples["atomic 90"])
    assert finding.startswith("has 1 atomic")


def test_spill_is_found(samples):
    row = samples["spilling 90"]
    assert row["registers"] == 255
    (finding,) = findings(row)
    assert finding.startswith(f"spills registers: {row['spills']}")


@pytest.mark.parametrize(
    ("architecture", "instruction"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")]
)
def test_product_without_tensor_cores_is_a_finding(samples, architecture, instruction):
    row = samples[f"product {architecture}"]
    assert list(row["tensor"]) == [instruction]
    assert findings(row) == []
    assert findings(row | {"tensor": {}}) == [
        "has 1 matrix products but no tensor-core instruction"
    ]


def test_fp32_product_needs_no_tensor_cores(samples):
    row = samples["fp32 product 90"]
    assert (row["tensor"], row["products"]) == ({}, 0)


def test_shared_memory_must_fit_every_architecture_of_the_target(samples):
    row = samples["deep product 80"]
    stages = 5  # of six, one is in use
    assert row["shared"] == stages * 2 * (M * K + K * N)
    assert findings(row) == [
        f"needs {row['shared']:,} bytes of shared memory; sm_{architecture} has 101,376"
        for architecture in (86, 89)
    ]


# --- the shipped kernels --------------------------------------------------------------------------


def test_committed_ledger_is_current(tmp_path):
    """One family of kernels on one architecture."""
    file = tmp_path / "rows.json"
    options = ["--arch", "90", "--kernel", "cross_entropy", "--check", "--json", str(file)]
    done = run("-m", "bench.ledger", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(file.read_text())


def test_every_launch_is_of_a_kernel_of_the_ledger():
    """By name, constants and tile, on every architecture."""
    held = defaultdict(list)  # (target, case) -> the words of each kernel
    for row in json.loads(ledger.COMMITTED.read_text())["3.6.0"]:
        name, _, rest = row["key"].partition("(")
        for case in row["cases"]:
            held[row["target"], case].append({name, *rest.split()})
    cases = (*CASES, *UPDATES, *TOKENS, *STEPS)
    for case, target in itertools.product(cases, ledger.TARGETS):
        for *_, one in compiled.record(case, int(target)):
            constants = {f"{k}={getattr(v, '__name__', v)}" for k, v in one.options.items()}
            wanted = constants - {"enable_fp_fusion=True", "maxnreg=None"} | {compiled.name(one)}
            assert any(wanted <= words for words in held[target, str(case)]), (case, wanted)


# --- the rules and the command --------------------------------------------------------------------


def row(**figures) -> dict:
    return {
        "target": "90",
        "key": "layer_norm_forward_kernel(*bf16/16) BLOCK=512 num_warps=4",
        "architectures": [90],
        "cases": ["layer_norm gpt2 bf16"],
        "shared": 0,
        "narrow": [],
        "registers": 40,
        "spills": 0,
        "tensor": {},
        "atomics": 0,
        "exp2": 0,
        "loads": {"16": 1},
        "stores": {"16": 1},
        "products": 0,
        "instructions": 100,
    } | figures


def test_changes_name_each_column():
    place = f"90 {row()['key']}"
    assert changes([row()], [row(cases=[])]) == []
    assert changes([row()], []) == [f"{place}: is new"]
    assert changes([], [row()]) == [f"{place}: is gone"]
    assert changes([row(registers=48, loads={"8": 2})], [row()]) == [
        f"{place}: loads {{'16': 1}} -> {{'8': 2}}, registers 40 -> 48"
    ]


def test_kernel_that_does_not_compile_is_a_finding():
    failed = {"target": "90", "key": "x", "architectures": [90], "cases": [], "error": "why"}
    assert findings(failed) == ["does not compile: why"]


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command with a ledger in tmp_path and given rows instead of a compiler."""
    monkeypatch.setattr(ledger, "COMMITTED", tmp_path / "ledger.json")

    def command(rows, *arguments):
        monkeypatch.setattr(ledger, "collect", lambda targets, kernels: rows)
        return ledger.main(list(arguments))

    return command


def test_change_must_be_written_to_pass_the_check(command, capsys):
    assert command([row()], "--write") == 0
    assert command([row()], "--check") == 0
    assert command([row(registers=48)], "--check") == 1
    assert "registers 40 -> 48" in capsys.readouterr().out
    assert command([row(registers=48)], "--write") == 0
    assert command([row(registers=48)], "--check") == 0


def test_broken_rule_fails_even_if_committed(command, capsys):
    command([row(spills=3)], "--write")
    assert command([row(spills=3)], "--check") == 1
    assert "spills registers" in capsys.readouterr().out


def test_other_version_of_triton_is_checked_by_the_rules_only(command, capsys, monkeypatch):
    command([row()], "--write")
    monkeypatch.setattr(triton, "__version__", "3.99.0")
    assert command([row(registers=48)], "--check") == 0
    assert "triton 3.99.0: only the rules are checked" in capsys.readouterr().out
    assert command([row(atomics=1)], "--check") == 1


def test_selection_is_written_and_checked_alone(command):
    other = row(
        key="attention_forward_kernel(*bf16/16) M=64 num_warps=4", target="80", architectures=[80]
    )
    command([other, row()], "--write")
    assert command([row()], "--check", "--kernel", "layer_norm") == 0
    assert command([row()], "--check", "--arch", "sm_90") == 0
    command([row(registers=48)], "--write", "--kernel", "layer_norm")
    assert command([other, row(registers=48)], "--check") == 0
    assert command([row(registers=48)], "--check") == 1  # other is gone


def test_every_kernel_is_printed(command, capsys):
    command([row()])
    assert f"sm_90 {row()['key']}: 40 registers, 0 spills" in capsys.readouterr().out


def test_unknown_architecture_is_rejected():
    done = run("-m", "bench.ledger", "--arch", "75")
    assert done.returncode == 2
    assert "75 is unknown; choose from 80, 86, 89, 90, 100, 120" in done.stderr
