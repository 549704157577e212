"""The ledger of kernels and listings with known properties, and of the shipped kernels."""

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
from bench.ledger import compiled, sass
from bench.ledger.rules import changes, findings
from bench.results import REPOSITORY
from bench.workloads.operations import CASES, TOKENS, UPDATES
from bench.workloads.steps import STEPS


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> dict:
    """Of a process of its own, in which kernels are compiled and not interpreted."""
    file = tmp_path_factory.mktemp("ledger") / "samples.json"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.bench.ledger.samples", file]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
    return json.loads(file.read_text())


def test_kernels_that_follow_every_rule(samples):
    assert (samples["wide 90"]["loads"], samples["wide 90"]["stores"]) == ({"16": 1}, {"16": 1})
    for name, instruction in (("80", "HMMA"), ("90", "HGMMA"), ("100", "UTCHMMA")):
        assert list(samples[f"product {name}"]["tensor"]) == [instruction]
    assert samples["fp32 product 90"]["tensor"] == {}
    for name in ("wide 90", "product 80", "product 90", "product 100", "fp32 product 90"):
        assert findings(samples[name]) == []


def test_lost_divisibility_is_found_with_name_and_line(samples):
    source = Path(__file__).with_name("samples.py").read_text()
    line = source[: source.index("tl.load(x_ptr + at)")].count("\n") + 1
    (finding,) = findings(samples["forgetful 90"])
    assert finding.startswith("loads x_ptr at ")  # the folder is that of the cached kernel
    assert finding.endswith(f"/samples.py:{line} by 2 bytes at a time instead of 16")


def test_spills_and_missing_tensor_cores_are_found(samples):
    (spills,) = findings(samples["spilling 90"])
    assert spills.startswith(f"spills registers: {samples['spilling 90']['spills']}")
    assert samples["spilling 90"]["registers"] == 255
    (slow,) = findings(samples["product 90"] | {"tensor": {}})
    assert slow == "has 1 matrix products but no tensor-core instruction"


# --- the shipped kernels --------------------------------------------------------------------------


def test_committed_ledger_is_current(samples):
    """For one kernel on one architecture."""
    rows = samples["shipped"]
    keys = [row["key"] for row in rows]
    committed = json.loads(ledger.COMMITTED.read_text()).get(triton.__version__, rows)
    assert changes(rows, [row for row in committed if row["key"] in keys]) == []
    assert {findings(row) == [] for row in rows} == {True}


def test_every_launch_is_of_a_kernel_of_the_ledger():
    """By name, constants and tile, on every architecture."""
    held = defaultdict(list)  # (target, case) -> the words of each kernel
    for row in json.loads(ledger.COMMITTED.read_text())["3.6.0"]:
        name, _, rest = row["key"].partition("(")
        for case in row["cases"]:
            held[row["target"], case].append({name, *rest.split()})
    cases = (*CASES, *UPDATES, *TOKENS, *STEPS)
    for case, target in itertools.product(cases, ledger.TARGETS):
        for one in compiled.record(case, int(target)):
            constants = {f"{k}={getattr(v, '__name__', v)}" for k, v in one.options.items()}
            wanted = constants - {"enable_fp_fusion=True", "maxnreg=None"} | {compiled.name(one)}
            assert any(wanted <= words for words in held[target, str(case)]), (case, wanted)


# --- the rules and the command --------------------------------------------------------------------


def test_changes_and_broken_rules_fail_the_check(samples, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ledger, "COMMITTED", tmp_path / "ledger.json")
    ledger.COMMITTED.write_text("{}")
    row = samples["wide 90"]
    atomic, unsafe = row | {"key": "atomic", "atomics": 3}, row | {"key": "x", "overwritten": 2}

    def run(rows, option):
        monkeypatch.setattr(ledger, "collect", lambda targets, kernels: rows)
        return ledger.main([option]), capsys.readouterr().out

    run([row, atomic, unsafe], "--write")
    code, printed = run([row | {"registers": 999}, atomic, unsafe], "--check")
    assert code == 1
    # a broken rule also if it is committed
    for problem in ("-> 999", "has 3 atomic instructions", "overwrites 2 operands"):
        assert problem in printed
    run([row], "--write")
    assert run([row], "--check") == (0, "1 kernels follow every rule\n")
    assert "is gone" in run([], "--check")[1]


# --- listings -------------------------------------------------------------------------------------


def test_instructions_are_counted_by_their_meaning():
    code = sass.parse(Path(__file__).with_name("listing.sass").read_text())
    assert code[1] == sass.Instruction("LDG.E.128", "R4, desc[UR10][R12.64]")
    assert sass.counts(code) == {
        "instructions": 20,  # NOP does not count
        "spills": 2,  # storing RZ is not a spill
        "atomics": 1,  # RED; REDUX sums within a warp, the others discard the old value
        "tensor": {"HGMMA": 1},
        "exp2": 1,
        "loads": {"32": 1, "16": 2, "2": 1, "tile": 1},
        "stores": {"8": 1, "4": 1},
    }


IN_FLIGHT = """
        /*0000*/                   WARPGROUP.ARRIVE ;
        /*0010*/                   HGMMA.64x64x16.F32.BF16 R56, R88, gdesc[UR12].tnspB, R56 ;
        /*0020*/                   HGMMA.64x64x16.F32.BF16 R56, R92, gdesc[UR8], R56, gsb0 ;
        /*0030*/                   {between} ;
        /*0040*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0050*/                   MOV R88, R4 ;
"""
WRITES = ("MOV R88, R4", "LDS.128 R85, [R4]")  # which writes 85 to 88
READS = ("MOV R96, R88", "STS.128 [R4], R88")


@pytest.mark.parametrize("between", [*WRITES, *READS])
def test_writes_to_operands_of_products_in_flight_are_counted(between):
    code = sass.parse(IN_FLIGHT.format(between=between))
    assert sass.overwritten(code) == (between in WRITES)
