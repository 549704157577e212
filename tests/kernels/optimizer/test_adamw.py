"""AdamW against torch.optim.AdamW: the same steps, state and interface."""

import copy

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from kernels import torch_ops
from kernels.common import launch
from kernels.optimizer import multi_tensor
from kernels.optimizer.adamw import AdamW
from tests.numerics import assert_rounded_once, guarded
from tests.operands import DEVICE, randn

SHAPES = ((1,), (7,), (65,), (5, 13), (3, 1001))  # less than a vector, no multiple, two chunks
OPTIONS = {"lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-8}
MAKERS = (AdamW, torch_ops.adamw, torch.optim.AdamW)


def parameters(dtype=torch.float32):
    return [torch.nn.Parameter(randn(*SHAPES[i], dtype=dtype, seed=i)) for i in range(len(SHAPES))]


def groups(some):
    return [{"params": some[:2], "weight_decay": 0.0}, {"params": some[2:], "weight_decay": 0.3}]


def set_gradients(step, *lists, scale=1.0):
    """The same gradients for each list of parameters, rounded to their dtypes."""
    for some in lists:
        for i, p in enumerate(some):
            p.grad = randn(*p.shape, scale=scale, seed=100 * step + i).to(p.dtype)


def twins(make=AdamW, dtype=torch.float32):
    """Parameters and their `AdamW`, then equal parameters and their optimizer by `make`."""
    ours, usual = parameters(dtype), parameters(dtype)
    return ours, AdamW(groups(ours), **OPTIONS), usual, make(groups(usual), **OPTIONS)


def clip(optimizer, some, max_norm):
    if isinstance(optimizer, AdamW):
        return optimizer.clip_grad_norm(max_norm)
    return torch.nn.utils.clip_grad_norm_(some, max_norm)


def train(make, dtype, steps=5, max_norm=None, scale=1.0, **options):
    """The parameters after `steps` of a schedule."""
    some = parameters(dtype)
    optimizer = make(groups(some), **(OPTIONS | options))
    schedule = CosineAnnealingLR(optimizer, T_max=steps)
    for step in range(steps):
        set_gradients(step, some, scale=scale)
        if max_norm is not None:
            clip(optimizer, some, max_norm)
        optimizer.step()
        schedule.step()
    return some


@pytest.mark.parametrize(
    "options",
    [
        {"maximize": True},
        {"betas": (0.0, 0.0), "max_norm": 2.0},
        {"eps": 1e-2, "max_norm": 1e6},
        {"weight_decay": 0.0, "lr": 1.0},
        {"scale": 1e-12},
        {"scale": 1e12},
        {"steps": 12, "max_norm": 3.0},
    ],
    ids=str,
)
def test_as_exact_as_torch(options):
    exact, ours = (train(make, torch.float64, **options) for make in (torch.optim.AdamW, AdamW))
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-14)
    theirs, ours = (train(make, torch.float32, **options) for make in (torch.optim.AdamW, AdamW))
    for mine, baseline, expected in zip(ours, theirs, exact, strict=True):
        assert_rounded_once(mine, expected, baseline)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_parameters_are_rounded_copies_of_an_fp32_master(dtype):
    """Half of all values are overwritten before a step that is skipped, and count in the next."""
    some = parameters(dtype)
    masters = [torch.nn.Parameter(parameter.detach().float()) for parameter in some]
    optimizers = [AdamW(groups(some), **OPTIONS), AdamW(groups(masters), **OPTIONS)]
    for step in range(7):
        set_gradients(step, some)
        for parameter, master in zip(some, masters, strict=True):
            master.grad = parameter.grad.float()
            if step == 5:
                for one in (parameter, master):
                    one.detach().flatten()[::2] = 9.0  # which no master rounds to
        for optimizer in optimizers:
            optimizer.found_inf = torch.tensor(float(step == 5), device=DEVICE)
            optimizer.step()
    for parameter, master in zip(some, masters, strict=True):
        assert torch.equal(optimizers[0].state[parameter]["master"], master)
        assert torch.equal(parameter, master.to(dtype))


def test_clip_grad_norm_returns_the_norm_and_keeps_the_gradients():
    dtypes = torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float32
    some = [parameters(dtype)[i] for i, dtype in enumerate(dtypes)]
    optimizer = AdamW(some, **OPTIONS)
    set_gradients(0, some)
    kept = [parameter.grad.clone() for parameter in some]
    norm = optimizer.clip_grad_norm(0.5)
    exact = torch.cat([gradient.double().flatten() for gradient in kept]).norm()
    assert norm.item() == pytest.approx(exact.item(), rel=1e-6)
    assert optimizer.clip_grad_norm(0.5) == norm
    optimizer.step()
    assert all(torch.equal(parameter.grad, old) for parameter, old in zip(some, kept, strict=True))


def clip_one_step(optimizer, some, step):
    if step == 1:
        clip(optimizer, some, 0.1)


def clip_a_norm_that_is_not_finite(optimizer, some, step):
    some[4].grad[0, 3] = float("nan" if step else "inf")
    assert not clip(optimizer, some, 1.0).isfinite()


def leave_gradients_out(optimizer, some, step):
    """A parameter without a gradient is unchanged, and so are its state and its step."""
    some[1].grad = None
    if step % 2:
        some[3].grad = None


def add_a_group(optimizer, some, step):
    if step == 1:
        added = torch.nn.Parameter(some[3].detach().clone())
        optimizer.add_param_group({"params": [added], "lr": 1e-2})
        some.append(added)


def move_tensors(optimizer, some, step):
    """And give a gradient other strides."""
    some[3].grad = some[3].grad.t().contiguous().t()
    if step:
        state = optimizer.state[some[4]]
        state["exp_avg"] = state["exp_avg"].clone()
        some[2].data = some[2].data.clone()


CHANGES = [clip_one_step, clip_a_norm_that_is_not_finite, leave_gradients_out]


@pytest.mark.parametrize("change", [*CHANGES, add_a_group, move_tensors])
def test_a_change_between_steps_has_the_same_effect_as_in_torch(change):
    ours, optimizer, theirs, reference = twins(torch.optim.AdamW)
    optimizer.step()
    kept = []
    for step in range(4):
        set_gradients(step, ours, theirs)
        for one, some in ((optimizer, ours), (reference, theirs)):
            change(one, some, step)
            kept += [parameter.grad for parameter in some]  # so that no address is reused
            one.step()
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    states = (one.state_dict()["state"] for one in (optimizer, reference))
    # PyTorch counts the steps of an eager optimizer on the CPU
    torch.testing.assert_close(*states, equal_nan=True, check_device=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_found_inf_skips_the_step(dtype):
    ours, optimizer, usual, reference = twins(dtype=dtype)
    optimizer.found_inf = torch.zeros((), device=DEVICE)
    for step in range(4):
        optimizer.found_inf.fill_(step in (0, 2))
        set_gradients(step, ours, usual)
        if optimizer.found_inf:
            ours[4].grad[0, 3] = float("nan")
        else:
            reference.step()
        optimizer.step()
    assert all(map(torch.equal, ours, usual))
    states = (o.state_dict()["state"] for o in (optimizer, reference))
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize("max_norm", [1e9, 0.5])
def test_follow_takes_the_gradient_of_the_copy(max_norm):
    """With the bits that a parameter's own gradient of these values gives, beside 16-bit ones."""
    ours, optimizer, usual, reference = twins()
    ours[3].data, usual[3].data = ours[3].data.bfloat16(), usual[3].data.bfloat16()
    copies = {ours[i]: ours[i].detach().bfloat16().requires_grad_() for i in (0, 2, 4)}
    optimizer.follow(copies)
    for step in range(3):
        set_gradients(step, ours, usual)
        if step == 1:
            for parameter in (ours[0], ours[3], usual[0], usual[3]):
                parameter.detach().fill_(9.0)
        for i in (0, 2, 4):
            copies[ours[i]].grad = ours[i].grad.bfloat16()
            usual[i].grad, ours[i].grad = usual[i].grad.bfloat16().float(), None
        assert torch.equal(*(o.clip_grad_norm(max_norm) for o in (optimizer, reference)))
        optimizer.step()
        reference.step()
        assert all(map(torch.equal, ours, usual))
        assert all(torch.equal(copy, of.bfloat16()) for of, copy in copies.items())
    states = (o.state_dict()["state"] for o in (optimizer, reference))
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_memory_around_tensors_is_not_written():
    some, parameters_intact = zip(*map(guarded, parameters()), strict=True)
    gradients, gradients_intact = zip(*map(guarded, parameters()), strict=True)
    leaves = [torch.nn.Parameter(parameter.detach()) for parameter in some]
    for leaf, gradient in zip(leaves, gradients, strict=True):
        leaf.grad = gradient.detach()
    optimizer = AdamW(leaves, **OPTIONS)
    optimizer.clip_grad_norm(1.0)
    optimizer.step()
    for check in gradients_intact:
        check()
    for check in parameters_intact:  # they are written, their guards are not
        with pytest.raises(AssertionError, match=r"an operand of shape .* was written"):
            check()


def through_a_state_dict(values):
    optimizer, some, leaves = copy.deepcopy(values)
    other = AdamW(groups(some), lr=1.0)
    other.load_state_dict(optimizer.state_dict())
    other.follow(optimizer._copies)
    return other, some, leaves


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_a_state_dict])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_continues_with_the_same_bits(duplicate, dtype):
    some = parameters(dtype)
    optimizer = AdamW(groups(some), **OPTIONS)
    followed = [some[0].detach().bfloat16().requires_grad_()] if dtype == torch.float32 else []
    optimizer.follow(dict(zip(some, followed, strict=False)))
    leaves = [*followed, *some[len(followed) :]]
    set_gradients(0, leaves)
    optimizer.step()
    (other, copied, copied_leaves) = duplicate((optimizer, some, leaves))
    for step in (1, 2):
        for one, tensors in ((optimizer, leaves), (other, copied_leaves)):
            set_gradients(step, tensors)
            one.clip_grad_norm(1.0)
            one.step()
    assert all(map(torch.equal, [*some, *leaves], [*copied, *copied_leaves]))
    torch.testing.assert_close(other.state_dict(), optimizer.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("grouped", [groups, iter, lambda some: zip("abcde", some, strict=True)])
def test_state_dicts_are_interchangeable_with_torch(grouped):
    """Each step by another optimizer, which loads the state of the one before, in all orders."""
    ours, theirs = parameters(torch.float64), parameters(torch.float64)
    reference = torch.optim.AdamW(grouped(theirs), **OPTIONS)
    saved = None
    for step, maker in enumerate((0, 1, 0, 2, 1, 2, 0)):
        optimizer = MAKERS[maker](grouped(ours), **OPTIONS)
        if saved is not None:
            optimizer.load_state_dict(saved)
        set_gradients(step, ours, theirs)
        for one in (reference, optimizer):
            one.step()
            one.param_groups[0]["lr"] *= 0.5
        saved = optimizer.state_dict()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_a_closure_is_called_with_gradients_enabled():
    parameter = torch.nn.Parameter(torch.ones(3, device=DEVICE))

    def closure():
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert AdamW([parameter], lr=0.1).step(closure) == 3
    assert (parameter < 1).all()


def test_a_table_is_sent_only_if_it_changed():
    sent = multi_tensor.Sent(torch.int64, DEVICE)
    sends = [(sent.send([[1, 2], [3, last]]), sent.tensor) for last in (4, 4, 5)]
    assert [changed for changed, _ in sends] == [True, False, True]
    assert sends[0][1] is sent.tensor  # a captured graph uses this address
    assert sent.tensor.tolist() == [[1, 2], [3, 5]]


BETAS = ((0.9, 1.0), (float("nan"), 0.9), (-0.1, 0.9), (0.9,))
WRONG = [({"betas": betas}, r"betas is \(.*\); give two numbers in \[0, 1\)") for betas in BETAS]
for wrong in (-1.0, float("nan"), float("inf"), torch.tensor(float("nan"))):
    message = f"is {float(wrong)}; give a finite number of at least 0"
    WRONG += [({name: wrong}, f"{name} {message}") for name in ("lr", "eps", "weight_decay")]
WRONG += [({"amsgrad": True}, "amsgrad is not supported; use torch.optim.AdamW")]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_are_named(options, message):
    some = parameters()
    with pytest.raises(ValueError, match=message):
        AdamW(some, **options)
    optimizer, saved = AdamW(some[:2]), torch.optim.AdamW(some[:2]).state_dict()
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": some[2:]} | options)
    saved["param_groups"][0] |= options
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert len(optimizer.param_groups) == 1


def test_unsupported_parameters_gradients_and_states_are_named():
    transposed = torch.nn.Parameter(randn(3, 5).t())
    with pytest.raises(ValueError, match=r"shape \(5, 3\) and strides \(1, 5\) .* contiguous"):
        AdamW([transposed]).send()
    sparse = torch.nn.Parameter(randn(3))
    sparse.grad = torch.ones(3, device=DEVICE).to_sparse()
    with pytest.raises(ValueError, match="give dense gradients"):
        AdamW([sparse]).step()
    some, wider = ([torch.nn.Parameter(randn(size))] for size in (3, 5))
    optimizer, other = AdamW(some), AdamW(wider)
    set_gradients(0, some, wider)
    other.step()
    optimizer.load_state_dict(other.state_dict())
    for _ in range(2):
        with pytest.raises(ValueError, match=r"the exp_avg is .* shape \(5,\) .* shape \(3,\)"):
            optimizer.step()


@pytest.mark.parametrize(("first", "aligned"), [(0, multi_tensor.WIDE), (1, 1)])
def test_one_launch_updates_all_with_16_byte_loads_only_if_all_are_aligned(first, aligned):
    """The interpreter would load them from any address; a GPU would not."""
    flat = torch.zeros(3000, device=DEVICE)
    parts = flat[first : first + 65], flat[72 : 72 + multi_tensor.CHUNK + 1]
    some = [torch.nn.Parameter(part) for part in parts]
    set_gradients(0, some)
    optimizer = AdamW(some, **OPTIONS)
    with launch.record(90) as launches:
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
    names = [recorded.kernel.__name__ for recorded in launches]
    assert names == [f"adamw_{of}_kernel" for of in ("square_sum", "clip", "advance", "update")]
    assert launches[-1].grid == (3,)  # chunks
    assert launches[-1].options["ALIGNED"] == aligned
