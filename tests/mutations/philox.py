"""One-line mistakes in `kernels/common/philox.py`, and what each would break."""

TESTS = ["tests/kernels/common/test_philox.py", "tests/kernels/attention/test_attention_dropout.py"]
MUTATIONS = [
    ("ROUNDS = tl.constexpr(7)", "ROUNDS = tl.constexpr(2)", "too few rounds: words follow their counters"),
    ("return threshold, 65536 / (65536 - threshold)", "return threshold, 1.0", "what is kept is not scaled"),
    ("threshold = round(p * 65536)", "threshold = round(p * 256) * 256", "the rate moves in steps of 1/256"),
    ("return 65535, 0.0", "return 65535, 1.0", "p = 1 keeps a few"),
    ("if not 0.0 <= p <= 1.0:", "if p < 0.0 or p > 1.0:", "NaN is a probability"),
    ("cell_column = (first_column // 8 + tl.arange", "cell_column = (tl.arange", "every tile of a row repeats the first"),
    ("tl.where(k < 4, tl.where(k < 2, a, b)", "tl.where(k < 4, tl.where(k < 2, a, a)", "neighbouring columns share a coin"),
    ("_is_kept(word, k % 2, threshold), (rows", "_is_kept(word, k % 2 * 0, threshold), (rows", "pairs of columns share a coin"),
    ("cell_row = first_row // 2 + tl.arange", "cell_row = tl.arange", "tiles below each other repeat"),
    ("cell_column = first_column // 4 + tl.arange", "cell_column = tl.arange", "tiles beside each other repeat"),
    ("tl.where(j == 0, tl.where(i == 0, a, b)", "tl.where(j == 0, tl.where(j == 0, a, b)", "rows 8 apart share a coin"),
    ("_is_kept(word, h, threshold), (M, N)", "_is_kept(word, i, threshold), (M, N)", "columns 8 apart share a coin"),
    (">= (tl.cast(threshold", "> (tl.cast(threshold", "one coin in 65536 falls on the other side"),
    ("return (bits >= threshold) & (scale > 0)", "return bits >= threshold", "p = 1 keeps a few in the mask for tests"),
    ("cell_row, cell_column = row // 16 * 8 + row % 8,", "cell_row, cell_column = row // 16 * 8 + row // 2 % 8,", "the mask in PyTorch is another"),
    ("key_0, key_1 = seed & low, (seed >> 32) & low", "key_0, key_1 = seed & low, seed & low", "half of the seed counts twice"),
]
