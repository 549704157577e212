"""AdamW against torch.optim.AdamW: the same steps, state and interface."""

import copy

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from kernels.common import launch
from kernels.optimizer import multi_tensor
from kernels.optimizer.adamw import AdamW
from tests.numerics import assert_rounded_once, guarded
from tests.operands import DEVICE, randn

SHAPES = ((1,), (7,), (65,), (5, 13), (3, 1001))  # less than a vector, no multiple, two chunks
OPTIONS = {"lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-8}


def parameters(dtype=torch.float32):
    return [
        torch.nn.Parameter(randn(*shape, dtype=dtype, seed=i)) for i, shape in enumerate(SHAPES)
    ]


def groups(some):
    return [{"params": some[:2], "weight_decay": 0.0}, {"params": some[2:], "weight_decay": 0.3}]


def set_gradients(some, step, scale=1.0):
    for i, parameter in enumerate(some):
        gradient = randn(*parameter.shape, scale=scale, seed=100 * step + i)
        parameter.grad = gradient.to(parameter.dtype)


def train(make, dtype, steps, max_norm=None, scale=1.0, **options):
    """The parameters after `steps` of a schedule."""
    some = parameters(dtype)
    optimizer = make(groups(some), **(OPTIONS | options))
    schedule = CosineAnnealingLR(optimizer, T_max=steps)
    for step in range(steps):
        set_gradients(some, step, scale)
        if max_norm is not None and make is AdamW:
            optimizer.clip_grad_norm(max_norm)
        elif max_norm is not None:
            torch.nn.utils.clip_grad_norm_(some, max_norm)
        optimizer.step()
        schedule.step()
    return some


@pytest.mark.parametrize(
    "options", [{}, {"betas": (0.0, 0.0)}, {"eps": 1e-2}, {"weight_decay": 0.0, "lr": 1.0}]
)
def test_fp64_agrees_with_torch(options):
    for max_norm in (2.0, 1e6):
        exact = train(torch.optim.AdamW, torch.float64, 5, max_norm, **options)
        ours = train(AdamW, torch.float64, 5, max_norm, **options)
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 5, "scale": 1e-12},
        {"steps": 5, "scale": 1e12},
        {"steps": 50},
        {"steps": 50, "max_norm": 3.0},
    ],
)
def test_as_exact_as_torch(options):
    exact = train(torch.optim.AdamW, torch.float64, **options)
    theirs = train(torch.optim.AdamW, torch.float32, **options)
    ours = train(AdamW, torch.float32, **options)
    for mine, baseline, expected in zip(ours, theirs, exact, strict=True):
        assert_rounded_once(mine, expected, baseline)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_parameters_are_rounded_copies_of_an_fp32_master(dtype):
    some = parameters(dtype)
    masters = [torch.nn.Parameter(parameter.detach().float()) for parameter in some]
    optimizers = [AdamW(groups(some), **OPTIONS), AdamW(groups(masters), **OPTIONS)]
    for step in range(10):
        set_gradients(some, step)
        for parameter, master in zip(some, masters, strict=True):
            master.grad = parameter.grad.float()
        for optimizer in optimizers:
            optimizer.step()
    for parameter, master in zip(some, masters, strict=True):
        assert torch.equal(optimizers[0].state[parameter]["master"], master)
        assert torch.equal(parameter, master.to(dtype))


def test_clip_grad_norm_returns_the_norm_and_keeps_the_gradients():
    some = [*parameters(torch.float32)[:3], *parameters(torch.bfloat16)[3:]]
    optimizer = AdamW(some, **OPTIONS)
    set_gradients(some, 0)
    kept = [parameter.grad.clone() for parameter in some]
    norm = optimizer.clip_grad_norm(0.5)
    exact = torch.cat([gradient.double().flatten() for gradient in kept]).norm()
    assert norm.item() == pytest.approx(exact.item(), rel=1e-6)
    assert optimizer.clip_grad_norm(0.5) == norm
    optimizer.step()
    for parameter, gradient in zip(some, kept, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_clipping_affects_one_step():
    options = {"lr": 0.1, "betas": (0.0, 0.0), "eps": 1.0, "weight_decay": 0.0}  # stateless
    clipped, usual = parameters(), parameters()
    optimizer = AdamW(clipped, **options)
    for some in (clipped, usual):
        set_gradients(some, 0)
    optimizer.clip_grad_norm(1e-30)
    optimizer.step()
    assert all(map(torch.equal, clipped, usual))
    optimizer.step()
    AdamW(usual, **options).step()
    assert all(map(torch.equal, clipped, usual))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_has_the_same_effect_as_in_torch(bad):
    ours, theirs = parameters(), parameters()
    optimizers = AdamW(ours, **OPTIONS), torch.optim.AdamW(theirs, **OPTIONS)
    for some in (ours, theirs):
        set_gradients(some, 0)
        some[4].grad[0, 3] = bad
    assert not optimizers[0].clip_grad_norm(1.0).isfinite()
    torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_a_parameter_without_a_gradient_is_unchanged_and_so_is_its_step():
    ours, theirs = parameters(), parameters()
    optimizers = AdamW(groups(ours), **OPTIONS), torch.optim.AdamW(groups(theirs), **OPTIONS)
    for optimizer, some in zip(optimizers, (ours, theirs), strict=True):
        for step in range(4):
            set_gradients(some, step)
            some[1].grad = None
            if step % 2:
                some[3].grad = None
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
    state = optimizers[0].state
    assert ours[1] not in state
    assert [state[ours[i]]["step"].item() for i in (0, 3)] == [4, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_found_inf_skips_the_step(dtype):
    ours, usual = parameters(dtype), parameters(dtype)
    optimizer, reference = AdamW(groups(ours), **OPTIONS), AdamW(groups(usual), **OPTIONS)
    optimizer.found_inf = torch.zeros((), device=DEVICE)
    for step in range(4):
        optimizer.found_inf.fill_(step in (0, 2))
        for some in (ours, usual):
            set_gradients(some, step)
        if optimizer.found_inf:
            ours[4].grad[0, 3] = float("nan")
        else:
            reference.step()
        optimizer.step()
    torch.testing.assert_close(ours, usual, rtol=0, atol=0)
    for mine, theirs in zip(ours, usual, strict=True):
        state, expected = optimizer.state[mine], reference.state[theirs]
        assert all(state[key].equal(expected[key]) for key in expected)


@pytest.mark.parametrize("max_norm", [1e9, 0.5])
def test_follow_takes_the_gradient_of_the_copy(max_norm):
    """As if the 16-bit gradient of the copy were the parameter's own."""
    ours, usual = parameters(), parameters()
    optimizer, reference = AdamW(groups(ours), **OPTIONS), AdamW(groups(usual), **OPTIONS)
    copies = {ours[i]: ours[i].detach().bfloat16().requires_grad_() for i in (0, 2)}
    optimizer.follow(copies)
    for step in range(3):
        for some in (ours, usual):
            set_gradients(some, step)
        for i in (0, 2):
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
    some, checks = [], []
    for i, shape in enumerate(SHAPES):
        for values in (randn(*shape, seed=i), randn(*shape, seed=100 + i)):
            inside, check = guarded(values)
            some.append(inside.detach())
            checks.append(check)
    leaves = [torch.nn.Parameter(parameter) for parameter in some[::2]]
    for leaf, gradient in zip(leaves, some[1::2], strict=True):
        leaf.grad = gradient
    optimizer = AdamW(leaves, **OPTIONS)
    optimizer.clip_grad_norm(1.0)
    optimizer.step()
    for check in checks[1::2]:  # of the gradients, which are not written
        check()
    for check in checks[::2]:  # the parameters are written, their guards are not
        with pytest.raises(AssertionError, match=r"an operand of shape .* was written"):
            check()


def test_tensors_that_are_not_16_byte_aligned():
    flat = torch.zeros(200, device=DEVICE)
    views = [flat[1:8].view(7), flat[11:76].view(5, 13)]
    some = [torch.nn.Parameter(view.copy_(randn(*view.shape))) for view in views]
    others = [torch.nn.Parameter(view.clone()) for view in views]
    for mine in (some, others):
        optimizer = AdamW(mine, **OPTIONS)
        for step in range(2):
            set_gradients(mine, step)
            optimizer.step()
    assert all(map(torch.equal, some, others))
    assert flat[0] == 0
    assert not flat[76:].any()


def test_gradients_parameters_and_state_may_move():
    ours, usual = parameters(), parameters()
    optimizer, reference = AdamW(ours, **OPTIONS), AdamW(usual, **OPTIONS)
    kept = []
    for step in range(3):
        for some in (ours, usual):
            set_gradients(some, step)
        kept += [parameter.grad for parameter in ours]  # so that no address is reused
        state = optimizer.state[ours[4]]
        if step:
            state["exp_avg"] = state["exp_avg"].clone()
            ours[2].data = ours[2].data.clone()
        optimizer.step()
        reference.step()
    assert all(map(torch.equal, ours, usual))


def test_a_strided_gradient():
    ours, usual = parameters(), parameters()
    for some in (ours, usual):
        set_gradients(some, 0)
    ours[3].grad = ours[3].grad.t().contiguous().t()
    assert not ours[3].grad.is_contiguous()
    for some in (ours, usual):
        AdamW(some, **OPTIONS).step()
    assert torch.equal(ours[3], usual[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_resumes_from_a_state_dict_with_the_same_bits(dtype):
    def after_six_steps(interrupted):
        some = parameters(dtype)
        optimizer = AdamW(groups(some), **OPTIONS)
        for step in range(6):
            if interrupted and step == 3:
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer = AdamW(groups(some), lr=1.0)
                optimizer.load_state_dict(saved)
            set_gradients(some, step)
            optimizer.step()
        return some

    assert all(map(torch.equal, after_six_steps(False), after_six_steps(True)))


def test_state_dicts_are_interchangeable_with_torch():
    exact = train(torch.optim.AdamW, torch.float64, 2)
    for first, second in ((AdamW, torch.optim.AdamW), (torch.optim.AdamW, AdamW)):
        some = parameters(torch.float64)
        optimizer = first(groups(some), **OPTIONS)
        schedule = CosineAnnealingLR(optimizer, T_max=2)
        set_gradients(some, 0)
        optimizer.step()
        schedule.step()
        other = second(groups(some), **OPTIONS)
        other.load_state_dict(optimizer.state_dict())
        set_gradients(some, 1)
        other.step()
        torch.testing.assert_close(some, exact, rtol=1e-12, atol=1e-14)


def test_amsgrad_is_not_supported():
    some = parameters()
    saved = torch.optim.AdamW(some, amsgrad=True).state_dict()
    with pytest.raises(ValueError, match="amsgrad and maximize are not supported"):
        AdamW(some).load_state_dict(saved)


def test_groups_can_be_added():
    ours, theirs = parameters(), parameters()
    for make, some in ((AdamW, ours), (torch.optim.AdamW, theirs)):
        optimizer = make(some[:2], **OPTIONS)
        set_gradients(some, 0)
        optimizer.step()
        optimizer.add_param_group({"params": some[2:], "lr": 1e-2})
        set_gradients(some, 1)
        optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_a_closure_is_called_with_gradients_enabled():
    parameter = torch.nn.Parameter(torch.ones(3, device=DEVICE))
    optimizer = AdamW([parameter], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3
    assert (parameter < 1).all()


def test_one_launch_updates_all_parameters():
    some = parameters()
    optimizer = AdamW(groups(some), **OPTIONS)
    set_gradients(some, 0)
    with launch.record(90) as launches:
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
    names = [recorded.kernel.__name__ for recorded in launches]
    assert names == [
        f"adamw_{pass_}_kernel" for pass_ in ("square_sum", "clip", "advance", "update")
    ]
    assert launches[-1].grid == (len(SHAPES) + 1,)  # the last one has two chunks


def test_a_table_is_sent_only_if_it_changed():
    sent = multi_tensor.Sent(torch.int64, DEVICE)
    assert sent.send([[1, 2], [3, 4]])
    first = sent.tensor
    assert not sent.send([[1, 2], [3, 4]])
    assert sent.send([[1, 2], [3, 5]])
    assert sent.tensor is first  # a captured graph uses this address
    assert first.tolist() == [[1, 2], [3, 5]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr -1.0, eps .* must not be negative"),
        ({"betas": (0.9, 1.0)}, r"betas \(0.9, 1.0\) must be in \[0, 1\)"),
        ({"weight_decay": -0.1}, r"weight_decay -0.1 must not be negative"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        AdamW(parameters(), **options)


def test_unsupported_parameters_and_gradients_are_named():
    transposed = torch.nn.Parameter(randn(3, 5).t())
    with pytest.raises(ValueError, match=r"shape \(5, 3\) and strides \(1, 5\) .* contiguous"):
        AdamW([transposed]).send()
    sparse = torch.nn.Parameter(randn(3))
    sparse.grad = torch.ones(3, device=DEVICE).to_sparse()
    with pytest.raises(ValueError, match="give dense gradients"):
        AdamW([sparse]).step()


@pytest.mark.parametrize(("first", "aligned"), [(0, multi_tensor.WIDE), (1, 1)])
def test_16_byte_loads_are_used_only_if_all_tensors_are_aligned(first, aligned):
    """The interpreter would load them from any address; a GPU would not."""
    parameter = torch.nn.Parameter(torch.zeros(65, device=DEVICE)[first : first + 32])
    optimizer = AdamW([parameter], **OPTIONS)
    parameter.grad = torch.ones_like(parameter)
    with launch.record(90) as launches:
        optimizer.step()
    assert launches[-1].options["ALIGNED"] == aligned
