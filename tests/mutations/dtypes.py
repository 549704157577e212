"""One-line mistakes in `kernels/common/dtypes.py`, and what each would break."""

TESTS = [
    "tests/kernels/test_contract.py",
    "tests/kernels/norms/test_layer_norm.py",
    "tests/kernels/matmul/test_feed_forward.py",
]

MUTATIONS = [
    ("return torch.float64 if dtype == torch.float64 else torch.float32", "return dtype", "statistics are in bf16"),
    ("return tl.float64 if", "return tl.float32 if", "fp64 is computed in fp32"),
    ("if enabled and x.dtype != torch.float64", "if enabled", "autocast casts fp64"),
    ("if enabled and", "if False and", "autocast is ignored"),
]
