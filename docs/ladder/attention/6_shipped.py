"""Attention, rung 6: the shipped kernel, `kernels/attention/attention.py` and its backward.

What it adds to rung 5:
- Tiles, warps and stages per architecture and head size, chosen offline (`launch.TILES`): on sm_90
  128 x 64 by 8 warps with at most 128 registers, so that two programs share a processor, and one
  multiplies while the other takes exp2.
- The gradients, from out and the log-sum-exp of every row: two kernels that compute P again, one by
  rows and one by keys, and no atomics. docs/maths.md derives them.
- Dropout on the weights whose mask is a function of (seed, row, key): it is never stored, and
  forward and backward see the same (`kernels/common/philox.py`).
- Heads of 1 to 256 channels, fewer heads of keys than of queries, queries and keys of different
  lengths, any strides. `attention_qkv` reads the packed projection as it lies.
"""

from kernels.attention.attention import attention

if __name__ == "__main__":
    from bench.recipes.ladder import show

    show(__file__, attention)
