"""One-line mistakes in `kernels/embedding.py`, and what each would break."""

TESTS = ["tests/kernels/test_embedding.py", "tests/kernels/test_contract.py"]

MUTATIONS = [
    ("known = (token >= 0) & (token < V)", "known = token == token", "a wrong token is looked up"),
    ('other=float("nan")', "other=0.0", "a wrong token goes unnoticed"),
    ("(row % T)[:, None]", "row[:, None]", "positions go on from sequence to sequence"),
    ("y += tl.load(position_table_ptr", "y = tl.load(position_table_ptr", "the token is forgotten"),
    ("first += share * length", "first += share", "shares overlap"),
    (
        "for start in range(first, last, ROWS):",
        "for start in range(first, first + 1, ROWS):",
        "only the first tile is added",
    ),
    (
        "inside = (at < last)[:, None]",
        "inside = (at >= 0)[:, None]",
        "a tile takes a neighbour's rows",
    ),
    ("at = (share.to(tl.int64) * V + token) * C", "at = token * C", "shares overwrite each other"),
    (
        "tokens.contiguous(), token_table",
        "tokens, token_table",
        "strided tokens are read as if dense",
    ),
    ("if dy.stride(1) != 1:", "if False:", "a strided gradient is read as if dense"),
    (
        "dpositions[: dy.shape[1]] = dy.sum(0)",
        "dpositions[: dy.shape[1]] = dy[0]",
        "one sequence of the batch alone",
    ),
    (
        "return gradient.sum(0).to(dtype) if shares > 1 else",
        "return gradient[0].to(dtype) if shares > 1 else",
        "one share alone",
    ),
    ("accumulator(dtype) if shares > 1 else dtype", "dtype", "partial sums are rounded to bf16"),
]
