"""One-line mistakes in `kernels/norms/norm_parameter_gradients.py`, and what each would break."""

TESTS = ["tests/kernels/norms/test_layer_norm.py", "tests/kernels/norms/test_add_layer_norm.py"]

MUTATIONS = [
    (
        "tl.program_id(0) * (PARAMETERS + X_BIAS) * C + column",
        "column",
        "shares overwrite others",
    ),
    (
        "share_ptr + PARAMETERS * C, tl.sum(dx, 0)",
        "share_ptr + PARAMETERS * C, tl.sum(dbias, 0)",
        "the bias before the sum gets the norm's",
    ),
    (
        "tl.store(share_ptr, tl.sum(dweight, 0), column < C)",
        "tl.store(share_ptr, tl.sum(dweight, 0))",
        "a share is written past its end",
    ),
    ("tl.store(share_ptr + C, tl.sum(dbias, 0)", "tl.store(share_ptr + C, tl.sum(dweight, 0)", "dbias is dweight"),
    ("for first in tl.range(0, shares, ROWS):", "for first in tl.range(0, ROWS, ROWS):", "only the first 64 shares count"),
    ("(share < shares)[:, None] & (column < WIDTH)", "(share <= shares)[:, None] & (column < WIDTH)",
     "a share that is not there counts"),
    ("tl.store(sum_ptr + column, tl.sum(total, 0), column < WIDTH)",
     "tl.store(sum_ptr + column, tl.sum(total, 0))", "sums are written past their end"),
    ("gradients[1] if parameters == 2 else None", "gradients[-1]", "a bias that is not there"),
]
