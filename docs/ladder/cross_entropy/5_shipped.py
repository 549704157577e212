"""Cross entropy, rung 5: the shipped kernel, `kernels/losses/cross_entropy.py`.

It adds to rung 4:
- Backward reads dloss on the device. If it is 1, every program returns at once. Otherwise the
  gradient is recomputed from m and s, including dloss, and rounded once.
- A row is an aligned middle, moved in 16-byte vectors, and at most two partial vectors at its ends,
  so 50,257 logits are as fast as 50,304. Rows may have any stride, and a program takes several
  short ones, such as the lecture's 65 logits.
- Targets equal to `ignore_index` are not counted. A target out of range makes the loss NaN.

`kernels/losses/linear_cross_entropy.py` also includes the head, with some rows of logits at a time.
"""

from bench.recipes.ladder import show
from kernels.losses.cross_entropy import cross_entropy

if __name__ == "__main__":
    show(__file__, cross_entropy)
