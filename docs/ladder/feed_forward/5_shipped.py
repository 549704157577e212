"""Feed-forward, rung 5: the shipped operation, `kernels/matmul/feed_forward.py`.

What it adds to rung 4:
- The GELU's erf becomes a polynomial and one exp2, right to 2^-24, with half as many instructions
  (`kernels/matmul/activation.py`); ReLU, its square and GPT-2's tanh are there too.
- The epilogue takes half of the tile's columns at a time, which makes room for tiles of 128 x 256
  and three stages (`kernels/matmul/gemm.py`). It also does the backward's f' and the dropout behind w2.
- The gradients: docs/maths.md derives them.
- A choice. cuBLAS is hard to beat at the products themselves, so each of the three that have
  something to finish goes the way that was measured to be faster at its shape: this kernel, or
  cuBLAS and one pass over memory behind it (`launch.ROUTES`). Where nothing was measured it is
  cuBLAS.
"""

from kernels.matmul.feed_forward import feed_forward

if __name__ == "__main__":
    from bench.recipes.ladder import show

    show(__file__, feed_forward)
