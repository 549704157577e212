"""One-line mistakes in `kernels/norms/layer_norm.py`, and what each would break."""

TESTS = ["tests/kernels/norms/test_layer_norm.py", "tests/kernels/test_contract.py"]

MUTATIONS = [
    ("x = tl.where(column < C, x - mean[:, None], 0)", "x -= mean[:, None]", "padding is summed"),
    ("rstd = tl.rsqrt(tl.sum(x * x, 1) / C + EPS)", "rstd = tl.rsqrt(tl.sum(x * x, 1) / C)", "eps"),
    ("mean = tl.sum(x, 1) / C", "mean = tl.sum(x, 1) / (C - 1)", "the mean is of C - 1"),
    ("    if CENTRED:\n        x = tl", "    if not CENTRED:\n        x = tl", "RMSNorm is centred"),
    ("        y *= tl.load(weight_ptr + column", "        y += tl.load(weight_ptr + column", "y + w"),
    ("tl.load(bias_ptr + column, column < C", "tl.load(weight_ptr + column, column < C", "w is b"),
    ("        dxhat *= weight\n", "        dxhat += 0\n", "dx forgets the weight"),
    ("(tl.sum(dxhat * xhat, 1) / C)", "(tl.sum(dy * xhat, 1) / C)", "a mean without the weight"),
    (
        "common += (tl.sum(dxhat, 1) / C)[:, None]",
        "common -= (tl.sum(dxhat, 1) / C)[:, None]",
        "the mean of dxhat has the wrong sign",
    ),
    ("return (dxhat - common) * rstd", "return dxhat * rstd - common", "rstd is forgotten"),
    (
        "tl.store(packed_rows(y_ptr, first, C, ROWS) + column, y, inside)",
        "tl.store(packed_rows(y_ptr, first, C, ROWS) + column, y)",
        "writes past the last row",
    ),
    ("tl.store(rstd_ptr + row, rstd, row < rows)", "tl.store(rstd_ptr + row, rstd)", "rstd too"),
    (
        "    if mean_ptr is not None:\n        tl.store(mean_ptr + row, mean,",
        "    if mean_ptr is not None:\n        tl.store(mean_ptr + row, rstd,",
        "rstd is kept as the mean",
    ),
    (
        "tl.range(program, tl.cdiv(rows, ROWS), programs, num_stages=STAGES)",
        "tl.range(program, programs, programs, num_stages=STAGES)",
        "a program visits one tile only",
    ),
    ("            dweight += dy * xhat", "            dweight += dy * x", "dweight is not of xhat"),
    ("            dweight += dy * xhat", "            dweight = dy * xhat", "the last tile counts"),
    ("            dbias += dy", "            dbias += dx", "dbias is the sum of dx"),
    ("            x -= tl.load(mean_ptr + row", "            x += tl.load(mean_ptr + row", "x + mean"),
    ("column, dx, inside)", "column, dx, column < C)", "dx is written past the last row"),
    ("(weight is not None) + (bias is not None)", "(weight is not None) + 1", "a bias for all"),
    (
        "1 <= x.shape[-1] <= WIDEST",
        "0 <= x.shape[-1] <= 2 * WIDEST",
        "rows of no width, or too wide, are taken",
    ),
    ("parameter.shape != x.shape[-1:]", "parameter.ndim != 1", "a weight of another width"),
]
