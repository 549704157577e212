"""One-line mistakes in `kernels/attention.py`, and what each would break."""

TESTS = ["tests/kernels/test_attention_dropout.py", "tests/kernels/test_attention.py"]
MUTATIONS = [
    ("seen &= row[:, None] >= key[None, :]", "seen &= row[:, None] > key[None, :]", "a row does not see itself"),
    ("seen &= row[:, None] >= key[None, :]", "seen &= row[:, None] + 1 >= key[None, :]", "a row sees the next token"),
    ("seen = (key < Tk)[None, :]", "seen = (key <= Tk)[None, :]", "a key past the last one counts"),
    ("if first_key + N > seen_by_all:", "if first_key > seen_by_all:", "the diagonal's tile is not masked"),
    ("tl.minimum(first_row + 1, Tk) if CAUSAL else Tk\n    seen_by_any", "tl.minimum(first_row + M, Tk) if CAUSAL else Tk\n    seen_by_any", "the diagonal's tile is not masked"),
    ("seen_by_any = tl.minimum(first_row + M, Tk)", "seen_by_any = tl.minimum(first_row + 1, Tk)", "the last tile of keys is left out"),
    ("inside_k = (key < Tk)[:, None] & is_d", "inside_k = (key <= Tk)[:, None] & is_d", "reads past the keys"),
    ("is_d = (d < D)[None, :]", "is_d = (d <= D)[None, :]", "reads past a row where D is padded"),
    ("inside = (row < Tq)[:, None] & is_d", "inside = (row <= Tq)[:, None] & is_d", "writes past the last row"),
    ("m + tl.log2(z), row < Tq)", "m + tl.log2(z), row <= Tq)", "writes past the log-sum-exp"),
    ("z = z * alpha + tl.sum(p, 1)", "z = z + tl.sum(p, 1)", "z is not rescaled when m grows"),
    ("v, acc * alpha[:, None], input", "v, acc, input", "acc is not rescaled when m grows"),
    ("tl.maximum(m, tl.max(s, 1) * (SCALE * LOG2_E))", "tl.max(s, 1) * (SCALE * LOG2_E)", "m forgets earlier tiles, and overflows"),
    ("p = tl.where(keep, p, 0.0)", "p = p", "nothing is dropped"),
    ("(KEEP_SCALE / z)", "(1.0 / z)", "what is kept is not scaled"),
    ("m + tl.log2(z)", "m + z", "lse is wrong, and so is every gradient"),
    ("k_ptr += batch * stride_kb + head // GROUP * stride_kh", "k_ptr += batch * stride_kb + head % GROUP * stride_kh", "heads read the keys of another group"),
    ("v_ptr += batch * stride_vb + head // GROUP * stride_vh", "v_ptr += batch * stride_vh + head // GROUP * stride_vh", "strides of the batch are not the batch's"),
    ("scale = D**-0.5 if scale is None else scale", "scale = D**-0.5", "the caller's scale is ignored"),
    ("x if x.stride(-1) == 1 else x.contiguous()", "x", "strided channels are read as if dense"),
    ("if constants[\"THRESHOLD\"] == 0:\n        return None", "if False:\n        return None", "the generator is asked for nothing"),
    ("return x.new_empty((B, T, H, D)).transpose(1, 2)", "return x.new_empty(x.shape)", "joining the heads is a copy"),
    ("accumulator = torch.float64 if q.dtype == torch.float64 else torch.float32", "accumulator = q.dtype", "lse is rounded to 16 bits"),
]
