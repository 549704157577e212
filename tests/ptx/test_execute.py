"""The executor on PTX written by hand: arithmetic, fragments, and every fault; and on Triton's."""

import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.results import REPOSITORY
from tests.ptx import machine
from tests.ptx.arithmetic import as_bits, as_type, operation
from tests.ptx.execute import run
from tests.ptx.memory import Fault

THREADS = 64
NAN, INF = float("nan"), float("inf")
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


# --- arithmetic -----------------------------------------------------------------------------------


def nearest(exact: Fraction) -> np.float32:
    """The fp32 number nearest to `exact`, of two the one with an even last bit."""
    guess = np.float32(float(exact))
    around = [np.nextafter(guess, np.float32(end)) for end in (-INF, INF)] + [guess]
    return min(around, key=lambda x: (abs(Fraction(float(x)) - exact), x.view(np.uint32) % 2))


def test_fma_rounds_once():
    numbers = np.random.default_rng(0).standard_normal((3, 500)).astype(np.float32)
    numbers[:, :4] = [[1 + 2**-23] * 4, [1.5] * 4, [2.0**-80, -(2.0**-80), 2.0**-24, 0]]
    fma, *_ = operation(("fma", "rn", "f32"))
    actual = as_type(as_bits(fma(*numbers), "f32", 4), "f32")
    a, b, c = ([Fraction(float(x)) for x in row] for row in numbers)
    expected = [nearest(x * y + z) for x, y, z in zip(a, b, c, strict=True)]
    assert actual.tolist() == expected


def test_numbers_are_rounded_to_bf16_as_by_pytorch():
    bits = np.random.default_rng(0).integers(0, 2**32, 4_000, np.uint32)
    numbers = bits.view(np.float32)
    rounded = as_type(as_bits(numbers, "bf16", 2), "bf16")
    expected = torch.from_numpy(numbers.copy()).bfloat16().float().numpy()
    assert np.array_equal(rounded, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("opcode", "operands", "expected"),
    [
        ("div.s32", (-7, 2), -3),
        ("shl.b32", (1, 32), 0),
        ("shr.s32", (-8, 40), -1),
        ("bfe.s32", (0b1101_0000, 4, 4), -3),
        ("prmt.b32", (0x33221100, 0x77665584, 0xC471), 0xFF847711),
        ("mul.hi.u32", (2**31, 6), 3),
        ("mul.hi.u64", (2**63, 6), 3),
        ("mul.wide.s32", (-(2**31), 4), -(2**33)),
        ("max.f32", (NAN, 1.0), 1.0),
        ("max.NaN.f32", (NAN, 1.0), NAN),
        ("setp.ne.f32", (NAN, 1.0), False),
        ("setp.neu.f32", (NAN, 1.0), True),
        ("setp.lt.s32", (-(2**31), 1), True),
        ("mul.ftz.f32", (2.0**-126, 0.5), 0.0),
        ("sub.rn.f32.bf16", (1.0, 2.0**-20), 1 - 2.0**-20),
    ],
)
def test_arithmetic(opcode, operands, expected):
    function, types, result = operation(tuple(opcode.split(".")))
    dtypes = [np.float32 if "f" in kind else f"{kind[0].replace('b', 'u').replace('s', 'i')}"
              f"{int(kind[1:]) // 8}" for kind in types]  # fmt: skip
    given = [np.array([x], dtype) for x, dtype in zip(operands, dtypes, strict=False)]
    actual = as_type(as_bits(function(*given), result, 8 if "64" in result else 4), result)
    assert np.array_equal(actual, [expected], equal_nan="f" in result)


# --- fragments: the positions of the PTX ISA, thread by thread ------------------------------------


def pair(low, high) -> int:
    """The register with two numbers in fp16."""
    return int(np.array([low, high], np.float16).view(np.uint32)[0])


def test_mma_takes_its_fragments_from_where_the_ptx_isa_says():
    random = np.random.default_rng(0)  # small integers, whose products are exact
    a, b, c = (random.integers(-9, 10, shape) for shape in ((16, 16), (16, 8), (16, 8)))
    registers = np.zeros((10, THREADS), np.uint32)  # 4 of A, 2 of B, 4 of C
    places = []
    for lane in range(THREADS):
        group, t = lane % 32 // 4, lane % 4
        for i, (row, column) in enumerate([(0, 0), (8, 0), (0, 8), (8, 8)]):
            row, column = group + row, 2 * t + column
            registers[i, lane] = pair(a[row, column], a[row, column + 1])
        for i, row in enumerate((2 * t, 2 * t + 8)):
            registers[4 + i, lane] = pair(b[row, group], b[row + 1, group])
        places.append([(group + 8 * (i // 2), 2 * t + i % 2) for i in range(4)])
        registers[6:, lane] = np.array([c[place] for place in places[-1]], np.float32).view("u4")
    operand, result = torch.from_numpy(registers), torch.zeros(4, THREADS)
    stride = 4 * THREADS
    loads = "".join(f"ld.global.b32 {{%r{20 + i}}}, [%rd3+{i * stride}];\n" for i in range(10))
    stores = "".join(f"st.global.b32 [%rd6+{i * stride}], {{%r{40 + i}}};\n" for i in range(4))
    execute(
        f"""{loads}
        mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{%r40, %r41, %r42, %r43}},
            {{%r20, %r21, %r22, %r23}}, {{%r24, %r25}}, {{%r26, %r27, %r28, %r29}};
        ld.param.b64 %rd5, [k_param_1];
        add.s64 %rd6, %rd5, %rd2;
        {stores}""".replace("},\n            {", "}, {"),
        operand,
        result,
    )
    d = a @ b + c
    assert result.T.tolist() == [[d[place] for place in of_lane] for of_lane in places]


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix_gives_thread_4_row_plus_pair_two_neighbours(trans):
    """Of rows, or with .trans of columns. Shared memory holds 0, 1, 2, ... in 16 bits."""
    result = torch.zeros(2, THREADS, dtype=torch.int32)
    execute(
        f"""
        shl.b32 %r3, %r1, 1;
        add.s32 %r4, %r3, 1;
        shl.b32 %r5, %r4, 16;
        or.b32 %r6, %r5, %r3;
        st.shared.b32 [%r2], %r6;
        bar.sync 0;
        and.b32 %r7, %r1, 15;
        shl.b32 %r8, %r7, 4;
        ldmatrix.sync.aligned.m8n8.x2{trans}.shared.b16 {{%r10, %r11}}, [%r8];
        st.global.b32 [%rd3+0], {{%r10}};
        st.global.b32 [%rd3+{4 * THREADS}], {{%r11}};""",
        result,
    )
    low, high = result.numpy() & 0xFFFF, result.numpy() >> 16
    for matrix in range(2):
        for lane in range(32):
            row, column = lane // 4, lane % 4 * 2
            first, second = 64 * matrix + 8 * row + column, 64 * matrix + 8 * row + column + 1
            if trans:
                first, second = (64 * matrix + 8 * (column + i) + row for i in range(2))
            assert (low[matrix, lane], high[matrix, lane]) == (first, second)


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_stmatrix_writes_the_rows_or_columns_that_threads_hold(trans):
    """Each warp holds 0, 1, 2, ... in 16 bits, and writes its matrix after those before it."""
    result = torch.zeros(THREADS, dtype=torch.int32)
    execute(
        f"""
        and.b32 %r3, %r1, 31;
        mul.lo.s32 %r4, %r3, 131074;
        add.s32 %r4, %r4, 65536;
        and.b32 %r5, %r1, 7;
        shl.b32 %r5, %r5, 4;
        shr.u32 %r6, %r1, 5;
        shl.b32 %r6, %r6, 7;
        add.s32 %r5, %r5, %r6;
        stmatrix.sync.aligned.m8n8.x1{trans}.shared.b16 [%r5], {{%r4}};
        bar.sync 0;
        ld.shared.b32 %r7, [%r2];
        st.global.b32 [%rd3+0], {{%r7}};""",
        result,
    )
    matrix = torch.arange(64).view(8, 8)
    expected = matrix.T if trans else matrix
    assert result.view(torch.int16).view(2, 8, 8).tolist() == 2 * [expected.tolist()]


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
        with pytest.raises(Fault, match=fault):
            execute(body, operand, programs=programs)


def test_threads_that_part_in_a_loop_meet_behind_it():
    """Thread t adds 1 to a register t times."""
    result = torch.zeros(THREADS, dtype=torch.int32)
    execute(
        """
        mov.b32 %r3, 0;
        $A:
        setp.ge.u32 %p1, %r3, %r1;
        @%p1 bra $B;
        add.s32 %r3, %r3, 1;
        bra.uni $A;
        $B:
        bar.sync 0;
        st.global.b32 [%rd3+0], {%r3};""",
        result,
    )
    assert result.tolist() == list(range(THREADS))


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
