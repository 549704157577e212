"""One-line mistakes in `kernels/attention_backward.py`, and what each would break."""

TESTS = ["tests/kernels/test_attention_dropout.py", "tests/kernels/test_attention.py"]
MUTATIONS = [
    ("seen &= row[:, None] >= key[None, :]", "seen &= row[:, None] > key[None, :]", "dQ lacks the diagonal"),
    ("if first_key + N > seen_by_all:", "if first_key > seen_by_all:", "dQ sees the future"),
    ("seen_by_any = tl.minimum(first_row + M, Tk)", "seen_by_any = tl.minimum(first_row + 1, Tk)", "dQ lacks the last tile of keys"),
    ("seen = (key < Tk)[None, :]", "seen = (key == key)[None, :]", "2^S of a key that is not there overflows in dQ"),
    ("delta = tl.sum(dout.to(ACC) * out.to(ACC), 1)", "delta = tl.sum(dout.to(ACC), 1)", "delta is not rowsum(dout out)"),
    ("ds = p * (dp - delta[:, None])", "ds = p * dp", "dS of dQ lacks delta"),
    ("ds = p * (dp - delta[None, :])", "ds = p * dp", "dS of dK lacks delta"),
    ("dq = (dq * SCALE).to", "dq = dq.to", "dQ is not scaled"),
    ("dk = (dk * SCALE).to", "dk = dk.to", "dK is not scaled"),
    ("dv = (dv * KEEP_SCALE).to", "dv = dv.to", "dV is not scaled for what was dropped"),
    ("tl.range(first_key if CAUSAL else 0, Tq, M)", "tl.range(first_key, Tq, M)", "dK and dV lack early rows when nothing is masked"),
    ("if CAUSAL and first_row < first_key + N - 1:", "if CAUSAL and first_row < first_key - 1:", "dK and dV see the future"),
    ("p = tl.where(row[None, :] >= key[:, None], p, 0.0)", "p = tl.where(row[None, :] > key[:, None], p, 0.0)", "dK and dV lack the diagonal"),
    ("head = kv_head * GROUP + member", "head = kv_head + member", "a group adds the heads of another"),
    ("statistics = (batch * tl.num_programs(1) * GROUP + head) * Tq", "statistics = (batch * tl.num_programs(1) + head) * Tq", "dK reads another batch's lse"),
    ("for member in tl.range(0, GROUP):", "for member in tl.range(0, 1):", "one head of a group adds to dK"),
    ("kept = tl.where(keep, p, 0.0)", "kept = p", "dV forgets the mask"),
    ("keep = tl.trans(keep)  # (N, M)", "keep = tl.reshape(keep, (N, M))", "the mask is not transposed with S"),
    ("dp = tl.where(keep, dp * KEEP_SCALE, 0.0)\n        ds", "dp = tl.where(keep, dp, 0.0)\n        ds", "dP of dQ is not scaled"),
    ("inside = (key < Tk)[:, None] & is_d", "inside = (key <= Tk)[:, None] & is_d", "dK and dV are written past the last key"),
    ("inside_q = (row < Tq)[:, None] & is_d", "inside_q = (row <= Tq)[:, None] & is_d", "rows past the last one are read"),
    ("is_row, is_d = row < Tq,", "is_row, is_d = row <= Tq,", "delta and dQ are written past the last row"),
    ("k_ptr += batch * stride_kb + head // GROUP * stride_kh", "k_ptr += batch * stride_kb + head * stride_kh", "dQ reads keys of another group"),
]
