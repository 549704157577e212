"""One-line mistakes in `kernels/attention/rotary.py`, and what each would break."""

TESTS = ["tests/kernels/attention/test_rotary.py", "tests/kernels/test_contract.py"]

MUTATIONS = [
    ("a * cos_a + b * sin_a, b * cos_b + a * sin_b", "a * cos_a + b * sin_b, b * cos_b + a * sin_a", "halves take each other's sines"),
    ("da * cos_a + db * sin_b, db * cos_b + da * sin_a", "da * cos_a + db * sin_a, db * cos_b + da * sin_b", "backward turns as forward does"),
    ("da, db = (da - a * common) * rstd, (db - b * common) * rstd", "da, db = da * rstd, db * rstd", "the gradient of rstd is forgotten"),
    ("/ D + EPS)[:, None]", "/ D)[:, None]", "eps does not count"),
    ("row_inside & (d < D - HALF)[None, :]", "row_inside & (d < HALF)[None, :]", "an odd head reads its neighbour"),
    ("token % T * D\n        cos_a, cos_b = _halves(cos_ptr, at, d, inside, D, HALF, ACC)\n        sin_a, sin_b = _halves(sin_ptr, at, d, inside, D, HALF, ACC)\n        a, b", "token * D\n        cos_a, cos_b = _halves(cos_ptr, at, d, inside, D, HALF, ACC)\n        sin_a, sin_b = _halves(sin_ptr, at, d, inside, D, HALF, ACC)\n        a, b", "a second row of the batch reads past the angles"),
    ("*qkv.stride()[:2], dqkv.stride(1), rows, T", "*dqkv.stride()[:2], dqkv.stride(1), rows, T", "a wider projection is read as if packed"),
]
