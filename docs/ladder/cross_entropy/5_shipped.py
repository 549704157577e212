"""Cross entropy, rung 5: the shipped kernel, `kernels/losses/cross_entropy.py`.

What it adds to rung 4:
- Backward reads dloss on the device. Where it is 1, every program ends at once; else the gradient
  is computed again from m and s, with dloss in it, and rounded once. Nobody waits, fp16 loses
  nothing. Where no gradient is wanted, none is written.
- A row is an aligned middle, moved in 16-byte vectors, and at most two pieces of a vector at its
  edges, so that 50,257 logits run as 50,304 do. Rows may have any stride.
- A program holds several short rows: the lecture has 65 characters.
- Targets of `ignore_index` do not count and their rows are not read. A target that does not exist
  makes the loss NaN instead of reading a stranger's memory.

One step further, `kernels/losses/linear_cross_entropy.py` takes the head along: the logits of some rows at
a time, so that all of them together never exist.
"""

from kernels.losses.cross_entropy import cross_entropy

if __name__ == "__main__":
    from bench.recipes.ladder import show

    show(__file__, cross_entropy)
