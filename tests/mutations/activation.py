"""One-line mistakes in `kernels/matmul/activation.py`, and what each would break."""

TESTS = ["tests/kernels/matmul/test_activation.py", "tests/kernels/matmul/test_feed_forward.py"]

MUTATIONS = [
    ("propagate_nan=tl.PropagateNan.ALL", "propagate_nan=tl.PropagateNan.NONE", "NaN becomes 0"),
    ("hidden = relu * relu", "hidden = relu", "the square is forgotten"),
    ("hidden = relu - z * _tail", "hidden = relu + z * _tail", "the tail has the wrong sign"),
    ("slope = tl.where(kept > 0, 1.0, 0.0)", "slope = tl.where(kept >= 0, 1.0, 0.0)", "f'(0) is 1"),
    ("slope = 2 * tl.sqrt(kept)", "slope = 2 * kept", "f' is taken of x, not of hidden"),
    ("r = q - z * p", "r = q + z * p", "the density has the wrong sign"),
    ("tl.where(kept < 0, r, 1 - r)", "1 - r", "f' is symmetric about 0"),
    ("* (-_LOG2E * _CUBIC) - _LOG2E", "* (-_LOG2E) - _LOG2E", "the cubic term lacks 0.044715"),
    ("p = q * rest * (square * (3 * _CUBIC)", "p = q * rest * (square * _CUBIC", "u' lacks the 3"),
    ("q = e * rest", "q = e", "s(v) is e^v"),
    ("_P3 = tl.constexpr(0.007126", "_P3 = tl.constexpr(0.007125", "a coefficient is mistyped"),
    ("_P7 = tl.constexpr(-2.3", "_P7 = tl.constexpr(2.3", "the tail returns beyond 7"),
    ("if z.dtype == tl.float64:", "if False:", "fp64 gets an fp32 polynomial"),
    ("* (-0.5 * _LOG2E) + _LOG2_PHI0", "* -0.5 + _LOG2_PHI0", "the density falls as 2^-z"),
    (
        "element = tl.program_id(0).to(tl.int64) * BLOCK +",
        "element = tl.program_id(0) +",
        "tiles overlap",
    ),
    (
        "tl.store(hidden_ptr + element, activate(x, ACTIVATION), element < size)",
        "tl.store(hidden_ptr + element, activate(x, ACTIVATION), element <= size)",
        "writes past the end",
    ),
    ("tl.load(kept_ptr + element, inside, other=0.0)", "tl.load(kept_ptr + element)", "padding is not masked"),
    ("row = block * ROWS + start +", "row = block * ROWS +", "a block does its first rows only"),
    ("        total += dx", "        total = dx", "sums forget earlier rows"),
    (
        "inside = (row < M)[:, None] & (column < N)",
        "inside = (row <= M)[:, None] & (column < N)",
        "writes past the last row",
    ),
    ("tl.sum(total, 0), column < N)", "tl.sum(total, 0), column <= N)", "sums are written past N"),
    ("block.to(tl.int64) * N + column, tl.sum", "column, tl.sum", "sums overwrite each other"),
    (
        "hidden = torch.empty_like(x) if out is None else out",
        "hidden = x if out is None else out",
        "an input is written",
    ),
    ("dtype=accumulator(x.dtype)", "dtype=x.dtype", "partial sums are rounded to 16 bits"),
]
