"""One-line mistakes in `kernels/decoding/decode_linear.py`, and what each would break."""

TESTS = ["tests/kernels/decoding/test_decode_linear.py", "tests/kernels/test_contract.py"]

MUTATIONS = [
    ("at = feature.to(tl.int64)[:, None] * K", "at = feature.to(tl.int64)[:, None] * COLUMNS", "rows of the weight begin elsewhere"),
    ("inside = (feature < N)[:, None] & (column < K)[None, :]", "inside = (feature < N)[:, None] & (column < COLUMNS)[None, :]", "a row runs on into the next"),
    ("- 1)  # repeats the last row", ")  # repeats the last row", "a row past the last is read and written"),
    ("x - tl.sum(x, 0) / K, 0)", "x - tl.sum(x, 0) / COLUMNS, 0)", "the mean counts the padding"),
    ("x = tl.where(column < K, x - tl.sum(x, 0) / K, 0)", "x = x - tl.sum(x, 0) / K", "the padding counts in the variance"),
    ('if NORM == "layer_norm":', "if NORM is not None:", "RMSNorm subtracts the mean"),
    ("/ K + EPS)", "/ K)", "no epsilon"),
    ("y *= tl.load(scale_ptr + feature", "y += tl.load(scale_ptr + feature", "the scale is added"),
    ("y = activate(y, ACTIVATION)", "y += 0", "no activation"),
    ("at = row.to(tl.int64) * N + feature", "at = row.to(tl.int64) * K + feature", "rows of the result begin elsewhere"),
    ("y += tl.load(residual_ptr + at, feature < N, other=0).to(ACC)", "y = tl.load(residual_ptr + at, feature < N, other=0).to(ACC)", "only the residual is left"),
    ("tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), feature < N)", "tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty))", "features past the last are written"),
    ("tl.program_id(0) * FEATURES +", "tl.program_id(0) +", "programs overlap"),
    ("tl.program_id(1) * ROWS + r", "r", "rows past the eighth are left out"),
    ("B > MOST_ROWS and weight.dtype != torch.int8", "B > MOST_ROWS", "int8 weights are written out in 16 bits"),
    ("operands = (x, weight, scale, bias, norm_weight, norm_bias, residual)", "operands = (x, weight, scale, bias, norm_weight, norm_bias, None)", "no residual"),
]
