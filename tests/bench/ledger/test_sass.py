"""Parsing of machine code, PTX and Triton's IR, on listings with a known meaning."""

import pytest
import torch

from bench.ledger import load_widths, sass

LISTING = """
	.headerflags	@"EF_CUDA_SM90"
.text._forward:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR10][R12.64] ;
        /*0020*/                   LDG.E.U16 R5, desc[UR10][R12.64+0x2] ;
        /*0030*/                   LDG.E.ENL2.256 R8, desc[UR10][R12.64+0x2] ;
.L_x_1:
        /*0040*/                   LDGSTS.E.BYPASS.LTC128B.128 [R4], desc[UR8][R2.64] ;
        /*0070*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], !UPT ;
        /*0080*/                   MUFU.EX2 R3, R3 ;
        /*0090*/                   MUFU.RCP R3, R3 ;
        /*00b0*/                   REDUX.SUM UR4, R3 ;
        /*00c0*/               @P1 BRA `(.L_x_1) ;
        /*00d0*/                   STL [R1], R3 ;
        /*00d8*/                   STL.64 [R1], RZ                  &rd=0x1  ?trans1;
        /*00e0*/                   LDL.LU R3, [R1] ;
        /*00f0*/                   STG.E.64 desc[UR10][R2.64], R4 ;
        /*0100*/                   STG.E desc[UR10][R2.64], R4 ;
        /*0110*/                   RED.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R5 ;
        /*0120*/                   ATOMS.OR RZ, [UR6+0x14], R2 ;
        /*0128*/                   ATOMG.E.EXCH.STRONG.GPU PT, RZ, [R2], R5 ;
        /*0130*/                   UTMALDG.2D [UR4], [UR6] ;
        /*0140*/                   EXIT ;
        /*0190*/                   NOP;
"""


def test_instructions_are_counted_by_their_meaning():
    code = sass.parse(LISTING)
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


TTIR = """
#loc = loc("/x/norm.py":3:0)
#loc1 = loc("/x/norm.py":6:16)
#loc2 = loc("/x/norm.py":7:16)
#loc3 = loc("/x/helper.py":1:5)
#loc9 = loc("w_ptr"(#loc))
  tt.func public @_forward(%x_ptr: !tt.ptr<bf16> loc("x_ptr"(#loc)), %w_ptr: !tt.ptr<f32>) {
    %x_1 = tt.addptr %x_ptr, %row : !tt.ptr<bf16>, i64 loc(#loc)
    %seed = tt.load %w_ptr : !tt.ptr<f32> loc(#loc12)
    %0:2 = scf.for %i = %c0 to %n step %c64 iter_args(%t = %cst, %x_2 = %x_1) -> (...) : i32 {
      %x_3 = tt.splat %x_2 : !tt.ptr<bf16> -> tensor<16x64x!tt.ptr<bf16>> loc(#loc10)
      %x_4 = tt.load %x_3, %mask, %cst_0 : tensor<16x64x!tt.ptr<bf16>> loc(#loc10)
    } loc(#loc)
    %w = tt.splat %w_ptr : !tt.ptr<f32> -> tensor<64x!tt.ptr<f32>> loc(#loc11)
    %w_5 = tt.load %w : tensor<64x!tt.ptr<f32>> loc(#loc11)
    %p = tt.splat %0#1 : !tt.ptr<bf16> -> tensor<64x!tt.ptr<bf16>> loc(#loc11)
    %p_6 = tt.load %p : tensor<64x!tt.ptr<bf16>> loc(#loc11)
    %q = arith.select %c, %w, %w : tensor<64x!tt.ptr<f32>> loc(#loc11)
    %q_7 = tt.load %q : tensor<64x!tt.ptr<f32>> loc(#loc11)
#loc10 = loc("x"(#loc1))
#loc11 = loc(callsite(#loc3 at #loc2))
#loc12 = loc(unknown)
"""


def test_loads_are_traced_to_their_argument_and_line():
    norm, helper = "/x/norm.py:6:16", "/x/helper.py:1:5"
    assert load_widths.tiles_of(TTIR) == [
        load_widths.Tile("w_ptr", 4, ""),
        load_widths.Tile("x_ptr", 16 * 64 * 2, norm),
        load_widths.Tile("w_ptr", 64 * 4, helper),
        load_widths.Tile("x_ptr", 64 * 2, helper),
        load_widths.Tile("q", 64 * 4, helper),  # a select between pointers is not traced
    ]


PTX = """
	.file	1 "/x/norm.py"
	.loc	1 6 16                          // norm.py:6:16
	// begin inline asm
	.loc	1 6 16                          // norm.py:6:16
	mov.u32 %r1, 0x0;
	.loc	1 7 16                          // norm.py:7:16
	@%p1 ld.global.L1::evict_last.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
	// end inline asm
	cp.async.cg.shared.global [ %r6 + 0 ], [ %rd5 + 0 ], 0x10, %r7;
	cp.async.ca.shared.global [ %r6 + 0 ], [ %rd5 + 0 ], 0x4, %r7;
	.loc	1 8 16                          // norm.py:8:16
	ld.global.b16 	%rs1, [%rd1];
	ld.global.nc.v2.u64 	{%rs1, %rs2}, [%rd1];
	ld.shared.b32 	%r1, [%r2];
"""


def test_widths_belong_to_the_line_of_the_load():
    assert load_widths.widths(PTX) == {"/x/norm.py:6:16": [16, 16, 4], "/x/norm.py:8:16": [2, 16]}


def test_rows_are_wide_if_all_start_and_end_at_16_bytes():
    x, y = torch.empty(4, 16, dtype=torch.bfloat16), torch.empty(4, 20, dtype=torch.bfloat16)
    for tensor in (x, x[:, :8], x[:, 8:], x[:, :8].t(), y[:1, :8]):
        assert load_widths.rows_are_wide(tensor)
    # 24 bytes; from 2 bytes on; the second row starts at 40 bytes; every other element
    for tensor in (x[:, :12], x[:, 1:9], y[:, :8], x[:, ::2]):
        assert not load_widths.rows_are_wide(tensor)


def test_line_of_a_helper_is_narrow_only_if_its_widest_load_is():
    """A caller whose load may be narrow excuses the line that it shares with others."""
    ttir = TTIR.replace("#loc3 at #loc2", "#loc1 at #loc2")
    tensors = {"x_ptr": torch.empty(64, 64, dtype=torch.bfloat16), "w_ptr": torch.empty(64, 64)}
    assert load_widths.narrow(ttir, PTX, tensors, threads=32) == []
    narrow = PTX.replace("v4.b32", "b32").replace("0x10", "0x4")
    assert load_widths.narrow(ttir, narrow, tensors, threads=32) == [
        "x_ptr at x/norm.py:6 by 4 bytes"
    ]
    assert load_widths.narrow(TTIR, PTX, tensors, threads=32) == ["x_ptr at x/norm.py:6 by 4 bytes"]
    # 2 KiB are 8 bytes for each of 256 threads
    assert load_widths.narrow(TTIR, PTX, tensors, threads=256) == []


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
