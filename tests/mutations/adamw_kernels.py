"""One-line mistakes in `kernels/optimizer/adamw_kernels.py`, and what each would break."""

TESTS = ["tests/kernels/optimizer/test_adamw.py"]

MUTATIONS = [
    ("step = tl.load(step_ptr) + 1", "step = tl.load(step_ptr)", "the first step has no bias correction"),
    ("SHRINK, 1 - lr * decay)", "SHRINK, 1 - decay)", "decay is not scaled by lr"),
    ("tl.sqrt(1 - tl.exp2(t * tl.log2(beta2)))", "tl.sqrt((1 - tl.exp2(t * tl.log2(beta2)).to(tl.float32)).to(tl.float64))", "coefficients are made in fp32"),
    ("hyper_ptr += tl.load(groups_ptr + tensor) * HYPERPARAMETERS", "hyper_ptr += 0", "all groups are the first"),
    ("coefficients_ptr += tensor * COEFFICIENTS\n    _update", "_update", "all tensors have the first one's coefficients"),
    ("g *= tl.load(factor_ptr).to(ACC)", "g *= 1.0", "nothing is clipped"),
    ("v = keep_v * tl.load(v_ptr + at, mask=inside) + blend_v * g * g", "v = keep_v * tl.load(v_ptr + at, mask=inside) + blend_v * g", "v is no square"),
    ("m += blend_m * (g - m)", "m += blend_m * g", "m does not decay"),
    ("tl.sqrt(v) / root + eps", "tl.sqrt(v / root + eps)", "eps is inside the root"),
    ("tl.load(p_ptr + at, mask=inside) * shrink", "tl.load(p_ptr + at, mask=inside)", "no weight decay"),
    ("if copy_ptr is not None:", "if False:", "a parameter of 16 bits does not follow its master"),
    ("whole + tl.arange(0, VECTOR), length, ACC,", "whole + tl.arange(0, VECTOR), whole, ACC,", "what is left of a tensor is not updated"),
    ("total += tl.sum(g * g, 0) + tl.sum(g_rest * g_rest, 0)", "total += tl.sum(g * g, 0)", "what is left of a tensor is not in the norm"),
    ("tl.where(factor > 1, 1.0, factor)", "factor", "small gradients are scaled up"),
    ("tl.where(factor > 1, 1.0, factor)", "tl.where(factor < 1, factor, 1.0)", "a norm that is NaN clips nothing"),
]
