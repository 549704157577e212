"""One-line mistakes in `kernels/matmul/feed_forward.py`, and what each would break."""

TESTS = ["tests/kernels/matmul/test_feed_forward.py", "tests/kernels/test_contract.py"]

MUTATIONS = [
    ("tl.where(keep, x * SCALE, 0.0)", "tl.where(keep, x, 0.0)", "what is kept is not scaled"),
    ("STREAM, row, first_column", "0, row, first_column", "backward replays another mask"),
    ("STREAM, row, first_column", "STREAM, row, 0", "the mask repeats in every strip"),
    ("inside = (row < M)[:, None]", "inside = (row <= M)[:, None]", "writes past the last row"),
    ("& (column < N)[None, :]", "& (column <= N)[None, :]", "writes past the last column"),
    (
        "dz = _dropped(dy.contiguous(),",
        "dz = _dropped(dy,",
        "a strided gradient is read as if dense",
    ),
    (
        "dz = _dropped(dy.contiguous(), seed, ctx.dropout_p)",
        "dz = dy.contiguous()",
        "no dropout back",
    ),
    ("db2 = dz.sum(0)", "db2 = dy.sum(0)", "db2 counts what was dropped"),
    ("dw2 = dz.T @ hidden", "dw2 = dy.T @ hidden", "dw2 counts what was dropped"),
    ("dw2 = dz.T @ hidden", "dw2 = dz.T @ kept", "dw2 is taken of pre"),
    ("db1 = sums.sum(0).to(x.dtype)", "db1 = sums[0].to(x.dtype)", "db1 of the first block alone"),
    ("dx = dpre @ w1", "dx = dpre @ w2.T", "dx by the wrong matrix"),
    ("if wants_x or wants_w1 or wants_b1:", "if wants_x or wants_w1:", "b1 alone has no gradient"),
    ("return activation_forward(pre, activation), pre", "return 2 * (pre,)", "no activation"),
    ("kept, activation, out=dhidden)", "kept, activation, out=kept)", "a saved tensor is written"),
    ("dpre, sums = _gradient(dz,", "dpre, sums = _gradient(dy,", "dpre counts what was dropped"),
    ("    if seed is None:\n        return x\n", "", "seedless dropout is launched"),
    ("if threshold_and_scale(dropout_p)[0] == 0:", "if False:", "a seed is drawn for nothing"),
    ("seed = new_seed(x.device)", "seed = 0 * new_seed(x.device)", "every call drops the same"),
    ("autocast_dtype(operand) or ", "", "autocast is ignored"),
    (".dtype).contiguous()", ".dtype)", "strides are ignored"),
    ("if activation not in ACTIVATIONS:", "if False:", "an unknown activation is some other"),
    ("if len(set(dtypes.values())) > 1 or", "if", "dtypes may differ"),
    ("if any(shapes[name] != fitting[name] for name in shapes):", "if False:", "any shapes"),
]
