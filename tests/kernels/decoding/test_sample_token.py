"""sample_token: the token that sorting would give from known noise, and its distribution."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import torch_ops, triton_ops
from kernels.common import launch, philox
from kernels.decoding.sample_token import sample_token
from tests.kernels.common.test_philox import seed_of
from tests.numerics import assert_deterministic, guarded, guarded_memory
from tests.operands import DEVICE, DTYPES, randn
from tests.sampling import DRAWING_RULES, assert_drawn_from, restricted_softmax

LOGITS = torch.tensor([1.0, 3.0, -1.0, 2.0, 2.0, -math.inf, 0.0, 0.5])


def known_noise(B, V, seed):
    """-log(-log(1 - u)) in fp64 from the words of Philox, (B, V)."""
    row, token = torch.arange(B, device=DEVICE)[:, None], torch.arange(V, device=DEVICE)
    words = philox._philox(seed, token // 4, row, 0, 0)  # (4, B, V)
    word = torch.take_along_dim(words, (token % 4).expand(1, B, V), 0)[0]
    return -(-torch.log1p(-(word.double() + 0.5) / 2**32)).log()


def sample_by_sorting(logits, temperature, top_k, top_p, seed):
    """The definition in fp64 with the noise of Philox: the argmax of z + g over kept tokens."""
    B, V = logits.shape
    z = logits.double() / temperature
    noise = known_noise(B, V, seed)
    x, order = z.sort(dim=-1, descending=True, stable=True)
    count = torch.searchsorted(-x, -x)  # of more likely tokens
    kept = (count < top_k) | (top_k == 0)
    p = x.masked_fill(~kept, -math.inf).softmax(-1)
    kept &= (p.cumsum(-1) - p).gather(-1, count) < top_p
    kept = torch.zeros_like(kept).scatter(-1, order, kept)
    return (z + noise).masked_fill(~kept, -math.inf).argmax(-1)


@given(
    st.integers(1, 4),
    st.sampled_from([1, 2, 3, 7, 16, 33, 65, 129, 300]),
    st.floats(0.2, 5.0),
    st.sampled_from([0, 1, 2, 5, 40, 1000]),
    st.sampled_from([1.0, 0.9, 0.5, 0.01]),
    st.sampled_from(DTYPES),
    st.sampled_from([0, 15]),
    st.integers(-(2**63), 2**63 - 1),
)
def test_the_token_is_that_of_the_definition(B, V, temperature, top_k, top_p, dtype, gap, seed):
    """Rows may have a gap after them, the padding of a vocabulary."""
    logits = randn(B, V + gap, dtype=dtype, scale=2.0, seed=seed % 1000)[:, :V]
    inside, check = guarded(logits)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed_of(seed)}
    with guarded_memory():
        sampled = sample_token(inside, **options)
    check()
    assert torch.equal(sampled, sample_by_sorting(logits, **options))


def test_large_noise_is_exact():
    """Logits cancel the noise except for a small excess of one token, which must be sampled."""
    seed = seed_of(5)
    noise = known_noise(1, 1000, seed)
    likely = ((noise[0] > 4.2) & (noise[0] < 5.2)).nonzero()[:, 0].tolist()
    assert len(likely) > 3
    for token in likely:
        logits = -noise
        logits[0, token] += 2e-3
        assert sample_token(logits.float(), seed=seed).item() == token


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setitem(launch.TILES, "sample_token", {80: (64, 64, 32)})


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (1.0, 3, 1.0), (0.5, 0, 0.4), (1.0, 5, 0.3), (3.0, 150, 0.4)],
)
def test_a_vocabulary_of_many_tiles(temperature, top_k, top_p):
    logits = randn(6, 300)
    logits[1, :2] += 200  # exp(200) overflows in fp32
    for seed in map(seed_of, range(2)):  # one samples the less likely of those two
        rule = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        assert torch.equal(sample_token(logits, **rule), sample_by_sorting(logits, **rule))


@pytest.mark.usefixtures("small_tiles")
def test_greedy_selects_the_first_of_equal_tokens():
    logits = torch.zeros(1, 200, device=DEVICE)
    logits[0, [70, 134, 190]] = 1
    assert sample_token(logits, temperature=0.0).tolist() == [70]


@pytest.mark.parametrize("sample", [sample_by_sorting, torch_ops.OPS.sample_token])
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), DRAWING_RULES)
def test_tokens_have_the_distribution(sample, temperature, top_k, top_p):
    """Over the rows of one seed, and over consecutive seeds, as used for consecutive tokens."""
    rule = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    probabilities = restricted_softmax(LOGITS, **rule)
    rows = LOGITS.repeat(20_000, 1).to(DEVICE)
    assert_drawn_from(sample(rows, **rule, seed=seed_of(1)), probabilities)
    seeds = [sample(rows[:1], **rule, seed=seed_of(seed)) for seed in range(1000)]
    assert_drawn_from(torch.cat(seeds), probabilities)


@pytest.fixture(params=[torch_ops, triton_ops], ids=["torch", "triton"])
def operation(request):
    return request.param.OPS.sample_token


def test_the_token_is_a_function_of_the_seed(operation):
    logits = randn(4, 300)
    assert_deterministic(lambda: operation(logits, seed=seed_of(3)))
    first = operation(logits, seed=seed_of(3))
    for other in (4, 3 + 2**32, -3):
        assert not torch.equal(operation(logits, seed=seed_of(other)), first)
    torch.manual_seed(0)
    sampled = operation(logits)  # from the default generator
    assert not torch.equal(operation(logits), sampled)
    torch.manual_seed(0)
    assert torch.equal(operation(logits), sampled)


@pytest.mark.usefixtures("small_tiles")
def test_temperature_0_or_one_kept_token_is_greedy(operation):
    logits = randn(3, 129, scale=100.0)
    greedy = logits.argmax(-1)
    assert torch.equal(operation(logits, temperature=0.0), greedy)
    ties = torch.tensor([[0.0, 2.0, 2.0]], device=DEVICE)
    assert operation(ties, temperature=0.0).tolist() == [1]
    for options in (
        {"top_k": 1},
        {"top_p": 1e-6},
        {"top_k": 2, "top_p": 1e-6},
        *({"temperature": low} for low in (1e-30, 1e-40, 5e-324)),
        {"temperature": 1e-40, "top_k": 2, "top_p": 0.9},
    ):
        assert torch.equal(operation(logits, seed=seed_of(1), **options), greedy)
        tied = operation(ties.repeat(10, 1), seed=seed_of(1), **options)
        assert set(tied.tolist()) == {1, 2}  # neither is more likely


def test_a_high_temperature_draws_from_all_possible_tokens(operation):
    drawn = operation(LOGITS.repeat(60, 1).to(DEVICE), temperature=1e300, seed=seed_of(0))
    assert set(drawn.tolist()) == set(range(8)) - {5}


@pytest.mark.parametrize(
    "options",
    [{"temperature": value} for value in (math.nan, math.inf, -1.0)]
    + [{"top_p": value} for value in (math.nan, 0.0, 1.5)]
    + [{"top_k": -1}],
)
def test_options_out_of_range_are_named(operation, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} (is )?{value}.*; give a finite temperature"):
        operation(randn(1, 3), **options)


@pytest.mark.parametrize(
    "row", [[-math.inf] * 3, [math.nan] * 3, [0.0, math.inf, 0.0], [1 + 2**-23, 1 + 2**-22, 0.0]]
)
@pytest.mark.parametrize("top_p", [1.0, 0.5])
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {}, {"top_k": 1}, {"top_k": 2}])
def test_logits_that_are_not_finite_or_hardly_differ_end_the_search(row, options, top_p):
    logits = torch.tensor([row], device=DEVICE)
    token = sample_token(logits, top_p=top_p, seed=seed_of(1), **options)
    assert 0 <= token.item() < 3
