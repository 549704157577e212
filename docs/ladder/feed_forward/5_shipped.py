"""Feed-forward, rung 5: the shipped operation, `kernels/matmul/feed_forward.py`.

It adds to rung 4:
- erf is replaced by a polynomial and one exp2, accurate to 2^-24 with half as many instructions.
  (`kernels/matmul/activation.py`).
- The epilogue handles half of the tile's columns at a time, which leaves room for tiles of 128 x
  256 and three stages (`kernels/matmul/gemm.py`). It also applies f' in backward, and dropout after
  w2.
- Gradients (docs/maths.md).
- A choice of implementation. cuBLAS is hard to beat at plain products, so each of the three
  products with an epilogue uses what was measured to be faster at its shape: this kernel, or cuBLAS
  and a separate pass (`launch.ROUTES`). The default is cuBLAS.
"""

from bench.recipes.ladder import show
from kernels.matmul.feed_forward import feed_forward

if __name__ == "__main__":
    show(__file__, feed_forward)
