"""One-line mistakes in `kernels/decoding/sample_token.py`, and what each would break."""

MUTATIONS = [
    ("logits_ptr += row.to(tl.int64) * stride", "logits_ptr += row.to(tl.int64) * V", "a padded vocabulary shifts the rows"),
    ("largest = tl.maximum(largest, z)", "largest = z", "the maximum is that of the last tile"),
    ("noisy = z if GREEDY else", "noisy = z if True else", "no noise"),
    ("better = (noisy > best) & (z > pivot)", "better = noisy > best", "what is out is found again, for ever"),
    ("better = (noisy > best) &", "better = (noisy >= best) &", "a tie goes to the last token"),
    ("tl.where(best == found, best_token, V), 0)", "best_token, 0)", "not the best token's index"),
    ("count += (z > pivot).to(tl.int32)", "count += (z >= pivot).to(tl.int32)", "a token counts itself as likelier"),
    ("mass += tl.where(z > pivot, p, 0)", "mass += tl.where(z >= pivot, p, 0)", "a token's own probability counts"),
    (">= top_k)", "> top_k)", "top_k + 1 tokens are kept"),
    ("(tl.sum(mass, 0) >= top_p * tl.sum(total, 0))", "(tl.sum(mass, 0) >= top_p)", "probabilities do not sum to one"),
    ('searching = (out & (found > float("-inf"))).to(tl.int32)', "searching = tl.zeros((), tl.int32)", "top-k and top-p are not heeded"),
    ("return x / temperature", "return x", "no temperature"),
    ("cell = first // 4 + tl.arange", "cell = tl.arange", "tiles share their noise"),
    ("seed, cell, tl.cast(row, tl.uint32)", "seed, cell, zero", "rows share their noise"),
    ("tl.join(tl.join(a, c), tl.join(b, d))", "tl.join(tl.join(a, c), tl.join(a, d))", "pairs of tokens share their noise"),
    ("u * (1 + u * (0.5 + u * (1 / 3)))", "u * (1 + u * 2)", "noise that wins is off by a little"),
]
