"""One-line mistakes in `kernels/matmul/gemm.py`, and what each would break."""

TESTS = ["tests/kernels/matmul/test_gemm.py", "tests/kernels/matmul/test_feed_forward.py"]

MUTATIONS = [
    (
        "HALF: tl.constexpr = BLOCK_N // 2",
        "HALF: tl.constexpr = BLOCK_N // 4",
        "a quarter is stored",
    ),
    (
        "tl.program_id(0), tiles, tl.num_programs(0)",
        "tl.program_id(0), tiles, tiles",
        "a program visits one tile",
    ),
    ("place % across * BLOCK_N", "place // across * BLOCK_N", "tiles of the diagonal alone"),
    (
        "for k in range(0, K, BLOCK_K):",
        "for k in range(0, K - BLOCK_K + 1, BLOCK_K):",
        "the last step of K is left out",
    ),
    ("reshape(BLOCK_M, 2, HALF).permute(0, 2, 1)", "reshape(BLOCK_M, HALF, 2)", "columns in turns"),
    ("value = halves[half]", "value = halves[0]", "the left half twice"),
    ("first = column + half * HALF", "first = column", "the right half over the left"),
    (
        "value += tl.load(bias_ptr + columns",
        "value += tl.load(bias_ptr + tl.arange(0, HALF)",
        "every tile adds the first biases",
    ),
    (
        "value = activate(x.to(ACC), ACTIVATION)",
        "value = activate(value, ACTIVATION)",
        "f is applied before x is rounded",
    ),
    ("STREAM, rows, first, THRESHOLD", "0, rows, first, THRESHOLD", "another stream"),
    (
        "STREAM, rows, first, THRESHOLD",
        "STREAM, rows, 0, THRESHOLD",
        "the mask repeats in every half",
    ),
    ("STREAM, rows, first, THRESHOLD", "STREAM, rows - row, first, THRESHOLD", "and in every tile"),
    (
        "tl.where(keep, value * SCALE, 0.0)",
        "tl.where(keep, value, 0.0)",
        "what is kept is not scaled",
    ),
    ("value *= derivative(kept.to(ACC)", "value = derivative(kept.to(ACC)", "dhidden is forgotten"),
    ("(row // BLOCK_M).to(tl.int64) * N + columns", "columns", "sums overwrite each other"),
    ("tl.sum(value, 0), columns < N)", "tl.sum(value, 0), columns <= N)", "sums past the end"),
    (
        "(rows < M)[:, None] & (columns < N)",
        "(rows <= M)[:, None] & (columns < N)",
        "a row too many",
    ),
    ("(rows < M)[:, None] & (columns < N)", "(rows < M)[:, None] & (columns <= N)", "writes past the last column"),
    ("if activation in FROM_HIDDEN else torch", "if True else torch", "GELU' is taken of hidden"),
    (
        '"gemm_narrow" if epilogue == "dropout"',
        '"gemm_wide" if epilogue == "dropout"',
        "dropout uses the wide tile",
    ),
    (">= DESCRIBED_FROM and all(", ">= 0 and all(", "descriptors on GPUs without them"),
    ("x.element_size() == 2\n        and ", "", "descriptors of tiles that do not fit"),
    ("and x.shape[1] * 2 % DESCRIBED_BYTES == 0", "", "descriptors of unaligned rows"),
    ("and x.storage_offset() * 2 % DESCRIBED_BYTES == 0", "", "descriptors of unaligned tensors"),
    ("programs = min(programs, _persistent_programs(a.device))", "pass", "a program per tile"),
    (
        "context = contextvars.copy_context()",
        "context = contextvars.Context()",
        "the target is lost",
    ),
    (
        "context.run(triton.set_allocator, _allocate)",
        "triton.set_allocator(_allocate)",
        "the allocator of the caller is replaced",
    ),
]
