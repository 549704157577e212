"""One-line mistakes in `kernels/norms/add_layer_norm.py`, and what each would break."""

TESTS = ["tests/kernels/norms/test_add_layer_norm.py", "tests/kernels/test_contract.py"]

MUTATIONS = [
    ("total = (residual.to(ACC) + x)", "total = (residual.to(ACC) - x)", "x is subtracted"),
    (
        "y, mean, rstd = normalise(total.to(ACC), column",
        "y, mean, rstd = normalise(x, column",
        "the branch is normalised, not the total",
    ),
    (
        "y, mean, rstd = normalise(total.to(ACC), column",
        "y, mean, rstd = normalise(residual.to(ACC) + x, column",
        "y is the norm of the unrounded total",
    ),
    ("x = tl.where(keep, x * scale, 0)", "x = tl.where(keep, x, 0)", "no 1 / (1 - p) forward"),
    ("x = tl.where(keep, x * scale, 0)", "x = tl.where(keep, 0, x * scale)", "the mask is turned"),
    ("dtotal * scale, 0)", "dtotal, 0)", "no 1 / (1 - p) in backward"),
    (
        "        if seed_ptr is not None:\n            keep",
        "        if False:\n            keep",
        "backward drops nothing",
    ),
    ("STREAM, row, 0, threshold, COLUMNS)\n            dtotal", "STREAM, row + 1, 0, threshold, "
     "COLUMNS)\n            dtotal", "backward takes the next row's mask"),
    ("        if dtotal_ptr is not None:", "        if False:", "what arrives is dropped"),
    ("dtotal += tl.load(arrived", "dtotal = tl.load(arrived", "the norm's gradient is dropped"),
    ("xhat = (total - mean) * rstd", "xhat = total * rstd", "backward is RMSNorm's"),
    ("        dweight += dy * xhat", "        dweight += dtotal * xhat", "dweight uses dtotal"),
    ("dx += dtotal  #", "dx += dy  #", "dx_bias sums dy"),
    ("x += tl.load(x_bias_ptr", "x = x + 0 * tl.load(x_bias_ptr", "x_bias is not added"),
    ("gradients[-1].to(", "gradients[0].to(", "dx_bias is dweight"),
    ("            dbias += dy", "            dbias += dtotal", "dbias of dtotal"),
    (
        "total, inside)\n\n    # --- norm",
        "total, column < C)\n\n    # --- norm",
        "the total is written past its end",
    ),
    ("tl.store(mean_ptr + row, mean, row < rows)", "tl.store(mean_ptr + row, mean)", "the mean is written past its end"),
    (
        "one_tensor = seed is None and residual_dtype == x_dtype",
        "one_tensor = residual_dtype == x_dtype",
        "dx is dresidual in spite of dropout",
    ),
    ("ctx.save_for_backward(total,", "ctx.save_for_backward(y,", "backward starts from y"),
    ("torch.zeros_like(total) if dy is None", "torch.ones_like(total) if dy is None", "an unused output gets a gradient of 1"),
]
