"""AdamW over all parameters in one launch, with every number that changes read on the device.

With g the gradient, t the step, and max_norm what `clip_grad_norm` was told (Loshchilov and Hutter
2019):

    g <- g min(1, max_norm / (norm + 1e-6))
    p <- p (1 - lr decay)
    m <- m + (1 - beta1) (g - m)              v <- beta2 v + (1 - beta2) g^2
    p <- p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

Decisions:
- A program updates a chunk of one tensor, found by tables of addresses (table.py). Parameters that
  are views of one flat buffer would need no tables, but would no longer belong to the model, to
  DDP and to whoever sets `.grad` to None. Addresses are compared at every step, and sent, without
  waiting, when one has changed.
- Steps, learning rates and the clipping factor lie on the device, so that a CUDA graph replays the
  right ones. Coefficients are made of them in fp64: in fp32, 1 - 0.999 has three digits less.
- State is fp32. A parameter of 16 bits has an fp32 master in its state and is its rounded copy. An
  fp32 parameter may have a copy of 16 bits beside it (`follow`), which then takes part in forward
  and backward: the step reads the copy's gradient, and rounds the parameter to the copy.
- The norm is a partial sum per chunk, and one program adds them: no atomics, and a count and an
  order that depend on nothing but the parameters. Gradients are not rewritten for it: the step
  scales them as it reads them.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import cdiv, launch
from kernels.optimizer import multi_tensor

PARTIALS = 8192  # chunks whose sums of squares are added at once
DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}

# columns of the table of addresses, and their number; of a tensor without a gradient all are 0
PARAMETER, GRADIENT, M, V, MASTER, STEP, ADDRESSES = map(tl.constexpr, range(7))


@triton.jit
def adamw_advance_kernel(addresses_ptr, groups_ptr, hyper_ptr, coefficients_ptr, found_inf_ptr):
    """Count the step of a tensor, and make its row of coefficients for the update."""
    tensor = tl.program_id(0)
    if found_inf_ptr is not None:
        found_inf = tl.load(found_inf_ptr)
        if found_inf != 0:
            return
    if tl.load(addresses_ptr + tensor * ADDRESSES + GRADIENT) == 0:
        return
    step_ptr = multi_tensor.pointer(addresses_ptr, tensor * ADDRESSES + STEP, tl.float32, 4)
    step = tl.load(step_ptr) + 1
    tl.store(step_ptr, step)
    hyper_ptr += tl.load(groups_ptr + tensor) * 5
    lr, beta1, beta2 = tl.load(hyper_ptr), tl.load(hyper_ptr + 1), tl.load(hyper_ptr + 2)
    eps, decay = tl.load(hyper_ptr + 3), tl.load(hyper_ptr + 4)
    t = step.to(tl.float64)
    coefficients_ptr += tensor * 7
    tl.store(coefficients_ptr, 1 - lr * decay)
    tl.store(coefficients_ptr + 1, 1 - beta1)
    tl.store(coefficients_ptr + 2, beta2)
    tl.store(coefficients_ptr + 3, 1 - beta2)
    tl.store(coefficients_ptr + 4, lr / (1 - tl.exp2(t * tl.log2(beta1))))
    tl.store(coefficients_ptr + 5, tl.sqrt(1 - tl.exp2(t * tl.log2(beta2))))
    tl.store(coefficients_ptr + 6, eps)


@triton.jit
def _update_elements(
    p_ptr, g_ptr, m_ptr, v_ptr, copy_ptr, coefficients_ptr, factor_ptr, found_inf_ptr, at, end,
    ACC: tl.constexpr,
):  # fmt: skip
    keep = tl.load(coefficients_ptr).to(ACC)
    blend1 = tl.load(coefficients_ptr + 1).to(ACC)
    keep2 = tl.load(coefficients_ptr + 2).to(ACC)
    blend2 = tl.load(coefficients_ptr + 3).to(ACC)
    pace = tl.load(coefficients_ptr + 4).to(ACC)
    root = tl.load(coefficients_ptr + 5).to(ACC)
    eps = tl.load(coefficients_ptr + 6).to(ACC)
    inside = at < end
    g = tl.load(g_ptr + at, mask=inside).to(ACC)
    if factor_ptr is not None:
        g *= tl.load(factor_ptr).to(ACC)
    p = tl.load(p_ptr + at, mask=inside) * keep
    m = tl.load(m_ptr + at, mask=inside)
    m += blend1 * (g - m)
    v = keep2 * tl.load(v_ptr + at, mask=inside) + blend2 * g * g
    p -= pace * m / (tl.sqrt(v) / root + eps)
    changed = inside
    if found_inf_ptr is not None:
        changed = at < tl.where(tl.load(found_inf_ptr) == 0, end, 0)
    tl.store(p_ptr + at, p, mask=changed)
    tl.store(m_ptr + at, m, mask=changed)
    tl.store(v_ptr + at, v, mask=changed)
    if copy_ptr is not None:
        tl.store(copy_ptr + at, p.to(copy_ptr.dtype.element_ty), mask=changed)


@triton.jit
def adamw_update_kernel(
    chunks_ptr, addresses_ptr, coefficients_ptr, factor_ptr, found_inf_ptr,
    CHUNK: tl.constexpr, VECTOR: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    tensor, start, whole, length = multi_tensor.chunk(chunks_ptr, CHUNK, VECTOR)
    row = tensor * ADDRESSES
    if tl.load(addresses_ptr + row + GRADIENT) == 0:
        return
    p_ptr = multi_tensor.pointer(addresses_ptr, row + MASTER, ACC, ALIGNED) + start
    g_ptr = multi_tensor.pointer(addresses_ptr, row + GRADIENT, DTYPE, ALIGNED) + start
    m_ptr = multi_tensor.pointer(addresses_ptr, row + M, ACC, ALIGNED) + start
    v_ptr = multi_tensor.pointer(addresses_ptr, row + V, ACC, ALIGNED) + start
    copy_ptr = None
    if DTYPE != ACC:
        copy_ptr = multi_tensor.pointer(addresses_ptr, row + PARAMETER, DTYPE, ALIGNED) + start
    coefficients_ptr += tensor * 7
    _update_elements(
        p_ptr, g_ptr, m_ptr, v_ptr, copy_ptr, coefficients_ptr, factor_ptr, found_inf_ptr,
        tl.arange(0, CHUNK), whole, ACC,
    )  # fmt: skip
    _update_elements(
        p_ptr, g_ptr, m_ptr, v_ptr, copy_ptr, coefficients_ptr, factor_ptr, found_inf_ptr,
        whole + tl.arange(0, VECTOR), length, ACC,
    )  # fmt: skip


@triton.jit
def adamw_square_sum_kernel(
    chunks_ptr, addresses_ptr, first_ptr, partials_ptr,
    CHUNK: tl.constexpr, VECTOR: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    tensor, start, whole, length = multi_tensor.chunk(chunks_ptr, CHUNK, VECTOR)
    place = tensor * ADDRESSES + GRADIENT
    total = tl.zeros((), ACC)
    if tl.load(addresses_ptr + place) != 0:
        g_ptr = multi_tensor.pointer(addresses_ptr, place, DTYPE, ALIGNED) + start
        at = tl.arange(0, CHUNK)
        g = tl.load(g_ptr + at, mask=at < whole, other=0.0).to(ACC)
        rest = whole + tl.arange(0, VECTOR)
        g_rest = tl.load(g_ptr + rest, mask=rest < length, other=0.0).to(ACC)
        total += tl.sum(g * g, 0) + tl.sum(g_rest * g_rest, 0)
    tl.store(partials_ptr + tl.load(first_ptr + tensor) + start // CHUNK, total)


@triton.jit
def adamw_clip_kernel(partials_ptr, norm_ptr, factor_ptr, length, max_norm, PARTIALS: tl.constexpr):
    total = tl.zeros((PARTIALS,), partials_ptr.dtype.element_ty)
    for start in range(0, length, PARTIALS):
        at = start + tl.arange(0, PARTIALS)
        total += tl.load(partials_ptr + at, mask=at < length, other=0.0)
    norm = tl.sqrt(tl.sum(total, 0))
    factor = max_norm / (norm + 1e-6)
    tl.store(norm_ptr, norm)
    tl.store(factor_ptr, tl.where(factor > 1, 1.0, factor))  # NaN stays NaN


class AdamW(torch.optim.Optimizer):
    """`torch.optim.AdamW` in one launch; groups, state and state_dict are the same."""

    found_inf = None  # a tensor () on the device, as PyTorch's has it: not 0, and no step is taken

    def __init__(self, params, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        if min(lr, eps, weight_decay, *betas) < 0 or max(betas) >= 1:
            raise ValueError(
                f"AdamW: lr {lr}, eps {eps} and weight_decay {weight_decay} must not be negative, "
                f"and betas {tuple(betas)} must lie in [0, 1)"
            )
        self._factor, self._copies = None, {}
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def add_param_group(self, param_group):
        super().add_param_group(param_group)
        self._tensors = None  # to be made anew

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.send()
        for tensors in self._tensors:
            tensors.update(self._hyper.tensor, self._factor, self.found_inf)
        self._factor = None
        return loss

    @torch.no_grad()
    def clip_grad_norm(self, max_norm):
        """The norm () of all gradients together; the next step takes it as `max_norm` at most."""
        self.send()
        for tensors in self._tensors:
            tensors.sum_squares(self._partials)
        norm = torch.empty((), dtype=self._partials.dtype, device=self._partials.device)
        self._factor = torch.empty_like(norm)
        results = norm, self._factor, len(self._partials), float(max_norm)
        launch(adamw_clip_kernel, (1,), self._partials, *results, PARTIALS=PARTIALS, num_warps=16)
        return norm

    @torch.no_grad()
    def send(self):
        """Bring the device up to date with the groups' numbers and with where the tensors lie.

        `step` does it; who replays a step from a CUDA graph does it before every replay.
        """
        if self._tensors is None:
            self._make_tensors()
        self._hyper.send(
            [
                [group["lr"], *group["betas"], group["eps"], group["weight_decay"]]
                for group in self.param_groups
            ]
        )
        for tensors in self._tensors:
            tensors.send(self.state)

    def follow(self, copies):
        """Let a parameter's gradient be that of its copy; every step rounds it to the copy.

        copies: fp32 parameter -> a contiguous tensor of its shape in 16 bits that requires a
        gradient. State and state_dict stay those of the parameters.
        """
        self._copies, self._tensors = copies, None

    def load_state_dict(self, state_dict):
        groups = state_dict["param_groups"]
        if any(group.get("amsgrad") or group.get("maximize") for group in groups):
            raise ValueError("AdamW: the saved optimizer has amsgrad or maximize; train without")
        super().load_state_dict(state_dict)
        # it has rounded the state to the parameters' dtype: take the state as it was saved
        saved = (index for group in groups for index in group["params"])
        for parameter, index in zip(self._parameters(), saved, strict=True):
            self.state[parameter] = {
                key: value.to(
                    parameter.device,
                    torch.float32 if key == "step" else _wide(parameter.dtype),
                    copy=True,
                )
                for key, value in state_dict["state"].get(index, {}).items()
            }

    def _parameters(self):
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _make_tensors(self):
        device = self._parameters()[0].device
        by_dtype: dict[torch.dtype, list] = {}
        count = 0  # of chunks, and so of partial sums of the norm
        for index, group in enumerate(self.param_groups):
            for p in group["params"]:
                if p.dtype not in DTYPES or p.device != device or not p.is_contiguous():
                    raise ValueError(
                        f"AdamW: a parameter of shape {tuple(p.shape)} and strides {p.stride()} is "
                        f"{p.dtype} on {p.device}; give contiguous floating ones, all on {device}"
                    )
                copy = self._copies.get(p, p)
                by_dtype.setdefault(copy.dtype, []).append((p, copy, index, count))
                count += cdiv(p.numel(), multi_tensor.CHUNK)
        self._hyper = multi_tensor.Sent(torch.float64, device)
        self._tensors = [_Tensors(*zip(*some, strict=True)) for some in by_dtype.values()]
        wide = max((tensors.wide for tensors in self._tensors), key=lambda dtype: dtype.itemsize)
        count += -count % 16  # zeros: whole vectors for `adamw_clip_kernel`
        self._partials = torch.zeros(count, dtype=wide, device=device)


class _Tensors:
    """The parameters of one dtype, and what the kernels read about them on the device."""

    def __init__(self, parameters, copies, groups, first):
        dtype, device = copies[0].dtype, parameters[0].device
        self.parameters, self.copies = parameters, copies
        self.wide = _wide(dtype)
        self.chunks = multi_tensor.chunks([parameter.numel() for parameter in parameters], device)
        self.groups = torch.tensor(groups, dtype=torch.int32, device=device)  # (tensors,)
        self.first = torch.tensor(first, dtype=torch.int32, device=device)  # partial sum, likewise
        self.coefficients = torch.empty(len(parameters), 7, dtype=torch.float64, device=device)
        self.addresses = multi_tensor.Sent(torch.int64, device)  # (tensors, ADDRESSES)
        self.options = {
            "CHUNK": multi_tensor.CHUNK,
            "VECTOR": multi_tensor.VECTOR,
            "DTYPE": DTYPES[dtype],
            "ACC": DTYPES[self.wide],
            "num_warps": 8,
        }

    def send(self, state):
        pairs = zip(self.parameters, self.copies, strict=True)
        rows = [_addresses(parameter, copy, state) for parameter, copy in pairs]
        if self.addresses.send(rows):
            aligned = not any(address % multi_tensor.WIDE for row in rows for address in row[:-1])
            self.options["ALIGNED"] = multi_tensor.WIDE if aligned else 1

    def sum_squares(self, partials):
        tensors = self.chunks, self.addresses.tensor, self.first, partials
        launch(adamw_square_sum_kernel, (len(self.chunks),), *tensors, **self.options)

    def update(self, hyper, factor, found_inf):
        tensors = self.addresses.tensor, self.groups, hyper, self.coefficients, found_inf
        launch(adamw_advance_kernel, (len(self.parameters),), *tensors, num_warps=1)
        tensors = self.chunks, self.addresses.tensor, self.coefficients, factor, found_inf
        launch(adamw_update_kernel, (len(self.chunks),), *tensors, **self.options)


def _addresses(parameter, copy, state):
    """A row of the table of addresses; `copy` is the parameter itself unless `follow` gave one."""
    gradient = copy.grad
    if gradient is None:
        return [0] * ADDRESSES.value
    if gradient.dtype != copy.dtype or gradient.layout != torch.strided:
        raise ValueError(
            f"AdamW: a gradient is {gradient.dtype} and {gradient.layout}, its parameter "
            f"{copy.dtype}; give dense gradients of the parameter's dtype"
        )
    if not gradient.is_contiguous():
        gradient = copy.grad = gradient.contiguous()
    mine, wide = state[parameter], _wide(parameter.dtype)
    if "step" not in mine:
        mine["step"] = torch.zeros((), device=parameter.device)
        mine["exp_avg"] = torch.zeros_like(parameter, dtype=wide)
        mine["exp_avg_sq"] = torch.zeros_like(parameter, dtype=wide)
    if parameter.dtype != wide and "master" not in mine:
        mine["master"] = parameter.to(wide)
    m, v, step = mine["exp_avg"], mine["exp_avg_sq"], mine["step"]
    tensors = copy, gradient, m, v, mine.get("master", parameter), step
    return [tensor.data_ptr() for tensor in tensors]


def _wide(dtype):
    return torch.promote_types(dtype, torch.float32)
