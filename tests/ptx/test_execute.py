"""The executor on Triton's PTX, and on PTX written by hand with every fault."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench.results import REPOSITORY
from tests.ptx import machine
from tests.ptx.execute import run
from tests.ptx.memory import Fault, Unsupported

THREADS = 64
# %r1 thread, %r2 4 * thread, %rd3 the address of the thread's number in the first operand, %r9 7
START = """
    ld.param.b64 %rd1, [k_param_0];
    mov.u32 %r1, %tid.x;
    shl.b32 %r2, %r1, 2;
    cvt.u64.u32 %rd2, %r2;
    add.s64 %rd3, %rd1, %rd2;
    mov.b32 %r9, 7;
"""


def execute(body: str, *operands, programs=1, counts=None) -> None:
    """Execute instructions by 64 threads for each program, with 512 bytes of shared memory."""
    parameters = ",\n".join(f".param .u64 k_param_{i}" for i in range(len(operands)))
    registers = ".reg .pred %p<9>;\n.reg .b16 %rs<9>;\n.reg .b32 %r<99>;\n.reg .b64 %rd<99>;\n"
    text = f".visible .entry k(\n{parameters}\n)\n.reqntid {THREADS}\n{{\n{registers}"
    run(f"{text}{START}{body}\nret;\n}}\n", (programs,), operands, 512, range(programs), counts)


# --- Triton's code --------------------------------------------------------------------------------


COMPILED, ADAMW = "tests/ptx/compiled.py", "tests/kernels/optimizer/test_adamw.py"
REST = "not attention and not decod and not sample and (not test_adamw or found_inf or follow)"
PARTS = {
    "attention": [COMPILED, "-k", "attention and not decod"],
    "decoding": [COMPILED, "-k", "decod or sample"],
    "rest": [COMPILED, ADAMW, "-k", REST],
}


@pytest.mark.parametrize("part", PARTS)
def test_compiled_kernels_agree_with_fp64(part):
    """Every sm_80 kernel of the ledger, in a process where kernels are not interpreted."""
    command = [sys.executable, "-m", "pytest", "--ptx=80", "-p", "no:cacheprovider", *PARTS[part]]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5_000:]


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    Path(__file__).with_name("faults.txt").read_text().split("\n== ")[1:],
    ids=lambda case: case.partition(";")[0],
)
def test_faults(case, monkeypatch):
    name, fault, body = case.split("\n", 2)
    monkeypatch.setattr(machine, "MOST_TURNS", 9)
    operand, programs = torch.zeros(THREADS, dtype=torch.int32), int(name.rpartition(" ")[2])
    if fault == "no fault":
        execute(body, operand, programs=programs)
    else:
        with pytest.raises((Fault, Unsupported), match=fault):
            execute(body, operand, programs=programs)


def test_counts():
    """Of two warps: instructions, sectors of 32 bytes, turns of shared memory beyond the first."""
    counts = Counter()
    execute(
        """
        ld.global.b32 {%r3}, [%rd3+0];
        shl.b32 %r4, %r1, 3;
        st.shared.b32 [%r4], %r9;
        bar.sync 0;
        st.shared.b32 [global_smem], %r9;
        bar.sync 0;
        shl.b32 %r5, %r1, 7;
        and.b32 %r6, %r5, 511;
        st.shared.b32 [%r6], %r9;""",
        torch.zeros(THREADS, dtype=torch.int32),
        counts=counts,
    )
    assert (counts["ld", "global", "b32"], counts["st", "shared", "b32"]) == (2, 6)
    assert (counts["load bytes"], counts["load sectors"]) == (4 * THREADS, 2 * 32 * 4 // 32)
    # 64 words apart by two banks: 1 more turn; one word: none; four words of one bank: 3 more
    assert counts["bank conflicts"] == 2 * (1 + 0 + 3)
