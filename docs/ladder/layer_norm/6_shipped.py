"""LayerNorm, rung 6: the shipped kernel, `kernels/norms/layer_norm.py`.

It adds to rungs 4 and 5:
- Backward takes several rows at a time and loads the next ones in advance (`num_stages`). It runs
  as many programs as the largest GPU of its family holds at once, with a matching register limit
  (`launch.TILES`).
- A kernel sums the partial sums. Rows wider than 8,192 numbers, which leave no registers for a
  partial sum, are read again for dweight and dbias (`kernels/norms/norm_parameter_gradients.py`).
- Rows may have two arbitrary strides, so the heads of a packed projection are read in place
  (`kernels/common/row_layout.py`). Loads are 16 bytes wide wherever the strides allow it.
- The same code without the mean is RMSNorm. Weight and bias may be None. fp64 inputs are computed
  in fp64, so that `gradcheck` can verify the gradients.
"""

from bench.recipes.ladder import show
from kernels.norms.layer_norm import layer_norm

if __name__ == "__main__":
    show(__file__, layer_norm)
