"""How many blocks of a kernel one SM holds at a time.

The figures are those of NVIDIA's occupancy calculator (CUDA C++ Programming Guide, "Technical
Specifications per Compute Capability"); shared memory per block stands in `kernels.common.launch`.
"""

from kernels.common.launch import SHARED_MEMORY

REGISTERS = 65_536  # per SM; a warp is given them in units of 256, a quarter of an SM has a quarter
TENSOR_MEMORY = 512  # columns per SM, sm_100
RESERVED = 1_024  # bytes of shared memory that the system keeps per block

WARPS = {80: 64, 86: 48, 89: 48, 90: 64, 100: 64, 120: 48}
BLOCKS = {80: 32, 86: 16, 89: 24, 90: 32, 100: 32, 120: 24}


def resident_blocks(
    architecture: int, warps: int, registers: int, shared: int, tensor_memory: int = 0
) -> int:
    """Blocks that one SM holds at a time; 0 if a single one does not fit."""
    per_warp = -(-32 * registers // 256) * 256
    quarter_warps = REGISTERS // 4 // per_warp
    per_block = -(-(shared + RESERVED) // 128) * 128
    limits = [
        BLOCKS[architecture],
        WARPS[architecture] // warps,
        4 * quarter_warps // warps,
        (SHARED_MEMORY[architecture] + RESERVED) // per_block,
    ]
    if tensor_memory:
        limits.append(TENSOR_MEMORY // tensor_memory)
    return min(limits)
