"""The ledger of kernels and listings with known properties, and of the shipped kernels."""

import itertools
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import triton

from bench.ledger import __main__ as ledger
from bench.ledger import compiled, load_widths, sass
from bench.ledger.rules import changes, findings
from bench.results import REPOSITORY
from bench.workloads.operations import CASES, TOKENS, UPDATES
from bench.workloads.steps import STEPS
from tests.bench.ledger.samples import K, M, N


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
    for name in ("ragged 90", "small tile 90"):  # rows or tiles are narrow
        assert "16" not in samples[name]["loads"]
    assert samples["helper 90"]["loads"] == {"16": 1, "2": 8}  # by one line, where both may be
    for name, instruction in (("80", "HMMA"), ("90", "HGMMA"), ("100", "UTCHMMA")):
        assert list(samples[f"product {name}"]["tensor"]) == [instruction]
    assert samples["fp32 product 90"]["tensor"] == {}
    rows = {name: row for name, row in samples.items() if isinstance(row, dict)}
    broken = ("forgetful", "spilling", "deep product 80")
    assert not any(findings(row) for name, row in rows.items() if not name.startswith(broken))


@pytest.mark.parametrize(
    ("name", "pointer", "text", "size"),
    [
        ("forgetful", "x_ptr", "return tl.load(x_ptr + at)", 2),
        ("forgetful product", "x_ptr", "tl.load(x_ptrs)", 4),  # asynchronous, in a loop
    ],
)
def test_lost_divisibility_is_found_with_name_and_line(samples, name, pointer, text, size):
    source = Path(__file__).with_name("samples.py").read_text()
    line = source[: source.index(text)].count("\n") + 1
    (finding,) = findings(samples[f"{name} 90"])
    assert finding.startswith(f"loads {pointer} at ")  # the folder is that of the cached kernel
    assert finding.endswith(f"/samples.py:{line} by {size} bytes at a time instead of 16")


def test_narrowest_load_of_a_line_counts_if_all_of_its_loads_must_be_wide(samples):
    assert len(findings(samples["forgetful helper 90"])) == 2  # by x_ptr and by w_ptr


def test_spills_and_missing_tensor_cores_are_found(samples):
    (spills,) = findings(samples["spilling 90"])
    assert spills.startswith(f"spills registers: {samples['spilling 90']['spills']}")
    assert samples["spilling 90"]["registers"] == 255
    (slow,) = findings(samples["product 90"] | {"tensor": {}})
    assert slow == "has 1 matrix products but no tensor-core instruction"


def test_shared_memory_must_fit_every_architecture_of_the_target(samples):
    row = samples["deep product 80"]
    stages = 5  # of six, one is in use
    assert row["shared"] == stages * 2 * (M * K + K * N)
    assert findings(row) == [
        f"needs {row['shared']:,} bytes of shared memory; sm_{architecture} has 101,376"
        for architecture in (86, 89)
    ]


# --- the shipped kernels --------------------------------------------------------------------------


def test_committed_ledger_is_current(samples):
    """For one kernel on one architecture."""
    rows = samples["shipped"]
    keys = [row["key"] for row in rows]
    committed = json.loads(ledger.COMMITTED.read_text()).get(triton.__version__, rows)
    assert changes(rows, [row for row in committed if row["key"] in keys]) == []
    assert {findings(row) == [] for row in rows} == {True}


def test_rungs_of_the_ladder_compile_without_a_gpu(samples):
    (row,) = samples["rung"]
    assert (row["rung"], row["kernel"]) == ("2_tensor_cores", "`_linear`")
    assert (row["tensor-core"] > 0, row["spills"], row["widest load"]) == (True, 0, "16 bytes")


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


def row(**columns) -> dict:
    zeros = dict.fromkeys(("shared", "spills", "atomics", "products", "instructions"), 0)
    text = {"target": "90", "key": "layer_norm_forward_kernel(*bf16/16) BLOCK=512 num_warps=4"}
    lists = {"architectures": [90], "cases": ["layer_norm gpt2 bf16"], "narrow": []}
    return text | lists | zeros | {"loads": {"16": 1}, "tensor": {}, "registers": 40} | columns


NORM, CHANGED, ATOMIC, UNSAFE = row(), row(registers=48), row(atomics=3), row(overwritten=2)
OTHER = row(key="attention_forward_kernel() M=64 num_warps=4", target="80", architectures=[80])
BROKEN = {"target": "90", "key": "x", "error": "why"}


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """The command with an empty ledger in tmp_path and given rows instead of a compiler."""
    monkeypatch.setattr(ledger, "COMMITTED", tmp_path / "ledger.json")
    ledger.COMMITTED.write_text("{}")

    def command(rows, *arguments) -> tuple[int, str]:
        monkeypatch.setattr(ledger, "collect", lambda targets, kernels: rows)
        return ledger.main(list(arguments)), capsys.readouterr().out

    return command


@pytest.mark.parametrize(
    ("committed", "found", "options", "problem"),
    [
        ([NORM], [row(cases=[])], "", None),
        ([NORM], [NORM, OTHER], "", f"80 {OTHER['key']}: is new"),
        ([NORM, OTHER], [OTHER], "", f"90 {NORM['key']}: is gone"),
        ([NORM, OTHER], [NORM], "--kernel layer_norm", None),
        ([NORM, OTHER], [NORM], "--arch sm_90", None),
        ([NORM], [CHANGED | {"loads": {"8": 2}}], "", "{'16': 1} -> {'8': 2}, registers 40 -> 48"),
        # broken rules, even if committed
        ([ATOMIC], [ATOMIC], "", "has 3 atomic instructions"),
        ([UNSAFE], [UNSAFE], "", "overwrites 2 operands"),
        ([BROKEN], [BROKEN], "", "90 x: does not compile: why"),
    ],
)
def test_changes_and_broken_rules_fail_the_check(command, committed, found, options, problem):
    command(committed, "--write")
    code, printed = command(found, "--check", *options.split())
    assert (code, (problem or "1 kernels follow every rule") in printed) == (bool(problem), True)
    assert all(one["key"] in command(found)[1] for one in found)  # printed


def test_other_version_of_triton_is_checked_by_the_rules_only(command, monkeypatch):
    command([NORM], "--write")
    monkeypatch.setattr(triton, "__version__", "3.99.0")
    code, printed = command([CHANGED], "--check")
    assert (code, "triton 3.99.0: only the rules are checked" in printed) == (0, True)
    assert command([ATOMIC], "--check")[0] == 1


def test_selection_is_written_alone(command):
    command([OTHER, NORM], "--write")
    command([CHANGED], "--write", "--kernel", "layer_norm")
    assert command([OTHER, CHANGED], "--check")[0] == 0


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


def test_rows_are_wide_if_all_start_and_end_at_16_bytes():
    x, y = torch.empty(4, 16, dtype=torch.bfloat16), torch.empty(4, 20, dtype=torch.bfloat16)
    for tensor in (x, x[:, :8], x[:, 8:], x[:, :8].t(), y[:1, :8]):
        assert load_widths.rows_are_wide(tensor)
    # 24 bytes; from 2 bytes on; the second row starts at 40 bytes; every other element
    for tensor in (x[:, :12], x[:, 1:9], y[:, :8], x[:, ::2]):
        assert not load_widths.rows_are_wide(tensor)


IN_FLIGHT = """
        /*0000*/                   WARPGROUP.ARRIVE ;
        /*0010*/                   HGMMA.64x64x16.F32.BF16 R56, R88, gdesc[UR12].tnspB, R56 ;
        /*0020*/                   HGMMA.64x64x16.F32.BF16 R56, R92, gdesc[UR8], R56, gsb0 ;
        /*0030*/                   {between} ;
        /*0040*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0050*/                   MOV R88, R4 ;
"""


WRITES = ("MOV R88, R4", "IADD3 R95, P0, R4, R5", "IMAD.WIDE R87, R4, R5, R6")
WRITES += ("LDS.128 R85, [R4]", "SHFL.BFLY PT, R91, R4, 0x1, 0x1f")  # LDS.128 writes 85 to 88
READS = ("MOV R96, R88", "LDS.128 R84, [R88]", "STS.128 [R4], R88", "ISETP.GE.AND P0, PT, R88, R4")


@pytest.mark.parametrize("between", [*WRITES, *READS])
def test_writes_to_operands_of_products_in_flight_are_counted(between):
    code = sass.parse(IN_FLIGHT.format(between=between))
    assert len(code) == 6
    assert sass.overwritten(code) == (between in WRITES)
