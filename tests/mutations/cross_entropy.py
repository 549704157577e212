"""One-line mistakes in `kernels/losses/cross_entropy.py`, and what each would break."""

TESTS = ["tests/kernels/losses/test_cross_entropy.py", "tests/kernels/test_contract.py"]

MUTATIONS = [
    ("middle = (begin + VECTOR - 1) //", "middle = begin //", "the middle begins before the row"),
    ("tl.maximum(V - before, 0) // VECTOR", "V // VECTOR", "the middle runs past the row"),
    ("largest = tl.maximum(m, tl.max(x, 1))", "largest = tl.max(x, 1)", "m forgets earlier tiles"),
    ("s = s * tl.exp(m - largest) +", "s = s +", "s is not rescaled when m grows"),
    (
        "edge < before[:, None], edge,",
        "edge <= before[:, None], edge,",
        "a column is counted twice",
    ),
    ('other=-float("inf"), eviction_policy', "other=0.0, eviction_policy", "an ignored row has dx"),
    ("one_hot = tl.where(is_target, scale[:, None], 0.0)", "one_hot = 0.0", "dx lacks the one-hot"),
    (
        "coefficient = scale / (s + (1 - weight))",
        "coefficient = scale / s",
        "0 / 0 where ignored",
    ),
    (
        "in_middle = (target - before)",
        "in_middle = (target)",
        "the one-hot is misplaced in odd rows",
    ),
    (
        "(tiles - 1 - back) * COLUMNS",
        "(tiles - 2 - back) * COLUMNS",
        "the last tile is not written",
    ),
    (
        "known = (target >= 0) & (target < V)",
        "known = target == target",
        "a wrong target is looked up",
    ),
    (
        "loss = tl.where(counted, tl.log(s) + (m - x_target.to(ACC)), 0.0)",
        "loss = tl.log(s) + (m - x_target.to(ACC))",
        "ignored rows make the loss NaN",
    ),
    ("tl.log(s) + (m - x_target", "(tl.log(s) + m) - (x_target", "a shift costs digits"),
    (
        "if dloss == 1.0:",
        "if dloss != 2.0:",
        "a loss that is scaled keeps the gradient of one that is not",
    ),
    ("scale = dloss / tl.load(count_ptr)", "scale = 1.0 / tl.load(count_ptr)", "dloss is ignored"),
    (
        "dlogits, ctx.dlogits = ctx.dlogits, None",
        "dlogits = ctx.dlogits",
        "the second backward writes over the first",
    ),
    (
        "(targets != ignore_index).sum().clamp(min=1)",
        "(targets == targets).sum().clamp(min=1)",
        "ignored targets count",
    ),
    (".clamp(min=1)", "", "0 / 0 when nothing counts"),
    (
        "targets.reshape(-1).contiguous()",
        "targets.reshape(-1)",
        "strided targets are read as if dense",
    ),
    (
        "if rows.stride(1) != 1 or rows.stride(0) < V:",
        "if rows.stride(0) < V:",
        "strided logits are read as if dense",
    ),
]
