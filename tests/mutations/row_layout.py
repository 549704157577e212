"""One-line mistakes in `kernels/common/row_layout.py`, and what each would break."""

TESTS = ["tests/kernels/norms/test_layer_norm.py", "tests/kernels/norms/test_add_layer_norm.py"]

MUTATIONS = [
    ("x if x.stride(2) == 1 else x.contiguous()", "x", "columns with gaps are read without them"),
    ("all(size % vector == 0 for size in (C, *strides))", "C % vector == 0", "strides lose bytes"),
    ("len(x) == 1 or x.stride(0) == inner * x.stride(1)", "True", "a transposed batch is read flat"),
    ("first.to(tl.int64) * inner_stride * UNIT + row", "first.to(tl.int64) * inner_stride + row", "the unit is ignored"),
    ("at = ptr + (row // inner).to(tl.int64)", "at = ptr + (row % inner).to(tl.int64)", "the outer index is wrong"),
    ("at += (row % inner).to(tl.int64)", "at += (row // inner).to(tl.int64)", "the inner index is wrong"),
    ("        row += first\n", "        row += 0\n", "every program reads the first rows"),
    (
        "return ptr + first.to(tl.int64) * C + tl.arange(0, ROWS)[:, None] * C",
        "return ptr + first.to(tl.int64) * C + tl.arange(0, ROWS)[:, None]",
        "packed rows overlap",
    ),
    ("columns = max(8, next_power_of_2(C))", "columns = max(8, C)", "no power of two"),
]
