"""Attention, rung 6: the shipped kernel, `kernels/attention/attention.py`, and its backward.

It adds to rung 5:
- Tiles, warps and stages per architecture and head size, chosen offline (`launch.TILES`). On sm_90
  128 x 64 with 8 warps and at most 128 registers, so that two programs share an SM and one
  multiplies while the other takes exp2.
- Gradients from out and the log-sum-exp of each row: two kernels recompute P, one by rows and one
  by keys, without atomics (docs/maths.md).
- Dropout with a mask that is a function of (seed, row, key) and never stored (`philox.py`).
- Head sizes of 1 to 256, fewer heads for keys than for queries, different numbers of queries and
  keys, any strides. `attention_qkv` reads the packed projection directly.
"""

from bench.recipes.ladder import show
from kernels.attention.attention import attention

if __name__ == "__main__":
    show(__file__, attention)
