"""One-line mistakes in `kernels/attention_step.py`, and what each would break."""

MUTATIONS = [
    ("qkv_ptr += (batch * 3 * H + head) * D", "qkv_ptr += (batch * H + head) * D", "rows read the row before"),
    ("v_ptr = k_ptr + tl.cast(B, tl.int64) * H * T * D", "v_ptr = k_ptr + tl.cast(1, tl.int64) * H * T * D", "values are keys of another row"),
    ("inside = (key < position)[:, None] & (d < D)[None, :]", "inside = (key < T)[:, None] & (d < D)[None, :]", "what lies beyond the position is read"),
    ('s = tl.where(key < position, s, float("-inf"))', "s = s + 0", "keys beyond the position have weight"),
    ("for first in range(part * PART,", "for first in range(0,", "a part begins at the first key"),
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
    ("part = max(keys, triton.next_power_of_2(triton.cdiv(T, MOST_PARTS)))", "part = keys", "as many parts as there are 64 keys"),
]
