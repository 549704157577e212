"""One-line mistakes in `kernels/decoding/decode_attention.py`, and what each would break."""

TESTS = ["tests/kernels/decoding/test_decode_attention.py", "tests/kernels/test_contract.py"]

MUTATIONS = [
    ("qkv_ptr += (batch * (H + 2 * HKV) + head) * D", "qkv_ptr += (batch * H + head) * D", "rows read the row before"),
    ("v_ptr = k_ptr + tl.cast(B, tl.int64) * HKV * T * D", "v_ptr = k_ptr + tl.cast(1, tl.int64) * HKV * T * D", "values are keys of another row"),
    ("inside = seen[:, None] & (d < D)[None, :]", "inside = (key < T)[:, None] & (d < D)[None, :]", "what lies beyond the position is read"),
    ('s = tl.where(seen, s, float("-inf"))', "s = s + 0", "keys beyond the position have weight"),
    ("begin, end = part * PART,", "begin, end = 0,", "a part begins at the first key"),
    ("tl.minimum(part * PART + PART, position)", "position", "a part goes on to the last key"),
    ("z = z * alpha + tl.sum(p, 0)", "z = z + tl.sum(p, 0)", "the sum is not carried to the new maximum"),
    ("acc = acc * alpha + tl.sum(p[:, None] * v, 0)", "acc = acc + tl.sum(p[:, None] * v, 0)", "values are not carried to the new maximum"),
    ("if part == 0:", "if part >= 0:", "every part counts the new token"),
    ("tl.store(v_ptr + position * D + d, v, d < D)", "tl.store(k_ptr + position * D + d, v, d < D)", "the value is written over the key"),
    ("tl.store(k_ptr + position * D + d, k, d < D)", "tl.store(k_ptr + position * D + d, k)", "a key is written into its neighbour"),
    ("z = z * alpha + p\n", "z = z * alpha\n", "the new token's weight is not counted"),
    ("at = position * D + d\n", "at = d\n", "every token is turned as the first"),
    ("(d + D // 2) % D).to(ACC) * rstd", "(d + D // 2) % D).to(ACC)", "the other half is not normalised"),
    ("x *= rstd", "x *= 1.0", "nothing is normalised"),
    ("weight = tl.exp2(m - tl.max(m, 0))", "weight = tl.exp2(m * 0)", "parts with different maxima count the same"),
    ("at = part * rows + row", "at = part + row", "parts of other rows are added"),
    ("part = max(keys, next_power_of_2(cdiv(T, MOST_PARTS)))", "part = keys", "as many parts as there are 64 keys"),
    ("position - WINDOW + 1)", "position - WINDOW)", "a query sees a key too many"),
    ("position - WINDOW + 1)", "position - WINDOW + 2)", "a query sees a key too few"),
    ("begin = tl.maximum(begin, position", "begin = (position", "a part counts the keys of those before it"),
    ("seen = key < end", "seen = key < position", "a part that begins with the window goes on into the next"),
    ("kv_head = head // (H // HKV)", "kv_head = head % HKV", "heads read the keys of another group"),
    ("if head % (H // HKV) == 0:", "if head == 0:", "only the first group's key is kept"),
    ("new_ptr = qkv_ptr + (H - head + kv_head) * D", "new_ptr = qkv_ptr + H * D", "a head's new key is that of another"),
    ("window = window if window < T else 0", "window = 0", "a window is not passed on"),
]
