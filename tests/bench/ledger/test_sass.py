"""Counting instructions in listings with a known meaning, and rows that can be loaded wide."""

import pytest
import torch

from bench.ledger import load_widths, sass

LISTING = """
	.headerflags	@"EF_CUDA_SM90"
.text._forward:
        /*0000*/                   LDC R1, c[0x0][0x28] ;                  /* 0x00000a00ff017b82 */
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
