"""LayerNorm, rung 6: the shipped kernel, `kernels/norms/layer_norm.py`.

What it adds to rungs 4 and 5:
- Backward holds several rows, and the next tile of rows is on its way while one is worked on
  (`num_stages`). It runs as many programs as the largest card of its family holds at once, and the
  compiler is told how many registers that leaves (`launch.TILES`).
- A kernel of our own sums the shares, and rows wider than 8,192 numbers, which leave no registers
  for a share, are read once more for dweight and dbias (`kernels/norms/norm_parameter_gradients.py`).
- Rows may lie at any two strides (`kernels/common/row_layout.py`): the heads of a packed projection are taken as
  they are. Loads are 16 bytes wide wherever the strides allow it, and the compiler is told so.
- The same code without the mean is RMSNorm; weight and bias may be None; in fp64 it computes in
  fp64, so that `gradcheck` holds it against its own definition.
"""

from kernels.norms.layer_norm import layer_norm

if __name__ == "__main__":
    from bench.recipes.ladder import show

    show(__file__, layer_norm)
