"""One-line mistakes in `kernels/losses/linear_cross_entropy.py`, and what each would break."""

TESTS = ["tests/kernels/losses/test_linear_cross_entropy.py", "tests/kernels/test_contract.py"]

MUTATIONS = [
    ("at = slice(start, start + rows)", "at = slice(start, start + 128)", "rows are left out"),
    ("if b is None:", "if True:", "the bias is not added"),
    ("losses[at], None, gradient", "losses[:rows], None, gradient", "losses land in the first chunk"),
    (
        "_product(logits, W, 0, dx[at])",
        "_product(logits, W, 1, dx[at])",
        "dx begins with garbage",
    ),
    ("x_here, 1, dW)", "x_here, 0, dW)", "dW forgets earlier chunks"),
    ("db += logits.sum(0", "db = logits.sum(0", "db forgets earlier chunks"),
    (
        "db += logits.sum(0, dtype=db.dtype)",
        "db += logits.sum(0)",
        "db is rounded in every chunk",
    ),
    ("gradient = known if any(needs) else None", "gradient = None", "no gradient is made"),
    ("out[len(parameter) :] = 0", "out[len(parameter) :] = 1", "the padding has a gradient"),
    ("return losses.sum() / count", "return losses.mean()", "ignored targets count"),
    ("factor = tl.load(dloss_ptr).to(ACC) /", "factor = 1.0 /", "dloss is ignored"),
    ("/ tl.load(count_ptr).to(ACC)", "", "the gradient is of the sum"),
    ('wide = {"dtype": accumulator(dtype)', 'wide = {"dtype": dtype', "dW is added up in bf16"),
    (
        "rows = launch.cdiv(N, launch.cdiv(N, most)) if N else 1",
        "rows = launch.cdiv(N, most)",
        "the chunks' number is their size",
    ),
    (
        "out = torch.empty(gradient.shape, dtype=dtype, device=gradient.device)",
        "out = gradient",
        "a saved tensor is overwritten",
    ),
    (
        "targets = targets.reshape(-1).contiguous()",
        "targets = targets.reshape(-1)",
        "strided targets are read as if dense",
    ),
]
