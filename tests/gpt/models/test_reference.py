"""The reference against its equations in plain Python.

`Equations` computes one position at a time with `math` and lists: no tensors, no broadcasting, no
autograd.
"""

import cmath
import math
from dataclasses import replace

import pytest
import torch

from gpt.config.model import ModelConfig
from gpt.config.presets import PRESETS
from gpt.models.reference import GPT
from tests.gpt.configs import CONFIGS, LECTURE, draw_tokens, randomise

T = 7
ACTIVATIONS = {
    "relu": lambda u: max(u, 0.0),
    "relu_squared": lambda u: max(u, 0.0) ** 2,
    "gelu": lambda u: u * 0.5 * (1 + math.erf(u / math.sqrt(2))),
    "gelu_tanh": lambda u: u / (1 + math.exp(-math.sqrt(8 / math.pi) * (u + 0.044715 * u**3))),
}


class Equations:
    """The logits of a config from its weights, by name, as nested lists of Python floats."""

    def __init__(self, config, model):
        self.config = config
        self.weights = {name: w.tolist() for name, w in model.state_dict().items()}

    def logits(self, tokens):  # T integers -> T lists of V
        self.ends = [t for t, token in enumerate(tokens) if token == self.config.end_of_text]
        x = []
        for t, token in enumerate(tokens):
            x.append(self.weights["token_embedding_table.weight"][token])
            if self.config.position == "learned":
                x[t] = add(x[t], self.weights["position_embedding_table.weight"][t])
        for layer in range(self.config.n_layer):
            x = self.block(f"blocks.{layer}", x)
        logits = [self.linear("lm_head", self.norm("ln_f", x_t)) for x_t in x]
        cap = self.config.logit_softcap
        return [[cap * math.tanh(u / cap) for u in row] for row in logits] if cap else logits

    def block(self, name, x):
        normed = [self.norm(f"{name}.ln1", x_t) for x_t in x]
        heads = [self.head(f"{name}.sa.heads.{h}", normed) for h in range(self.config.n_head)]
        out = []
        for t, x_t in enumerate(x):
            side_by_side = [channel for head in heads for channel in head[t]]
            x_t = add(x_t, self.linear(f"{name}.sa.proj", side_by_side))
            hidden = self.linear(f"{name}.ffwd.net.0", self.norm(f"{name}.ln2", x_t))
            hidden = [ACTIVATIONS[self.config.activation](u) for u in hidden]
            out.append(add(x_t, self.linear(f"{name}.ffwd.net.2", hidden)))
        return out

    def head(self, name, x):  # T lists of C -> T lists of D
        k = [self.query_or_key(f"{name}.key", t, x_t) for t, x_t in enumerate(x)]
        q = [self.query_or_key(f"{name}.query", t, x_t) for t, x_t in enumerate(x)]
        v = [self.linear(f"{name}.value", x_t) for x_t in x]
        out = []
        for t, q_t in enumerate(q):
            first = max(0, t + 1 - self.config.window) if self.config.window else 0
            first = max([first, *(end + 1 for end in self.ends if end < t)])  # of the document
            scores = [dot(q_t, k[s]) / math.sqrt(len(q_t)) for s in range(t + 1)]
            weights = [math.exp(score) * (s >= first) for s, score in enumerate(scores)]
            wei = [weight / sum(weights) for weight in weights]
            out.append([dot(wei, [v[s][i] for s in range(t + 1)]) for i in range(len(q_t))])
        return out

    def query_or_key(self, name, t, x):
        y = self.linear(name, x)
        if self.config.qk_norm:
            y = self.root_mean_square_norm(y)
        if self.config.position == "rope":
            half = len(y) // 2
            for i in range(half):  # turn the plane (i, i + half) by t / 10000^(i / half)
                turned = complex(y[i], y[i + half]) * cmath.rect(1, t / 10_000 ** (i / half))
                y[i], y[i + half] = turned.real, turned.imag
        return y

    def norm(self, name, x):
        if self.config.norm == "layer_norm":
            x = [u - sum(x) / len(x) for u in x]
        y = self.root_mean_square_norm(x)
        y = [u * gain for u, gain in zip(y, self.weights[f"{name}.weight"], strict=True)]
        return add(y, self.weights.get(f"{name}.bias", [0.0] * len(y)))

    def root_mean_square_norm(self, x):
        return [u / math.sqrt(dot(x, x) / len(x) + self.config.norm_eps) for u in x]

    def linear(self, name, x):
        y = [dot(row, x) for row in self.weights[f"{name}.weight"]]
        return add(y, self.weights.get(f"{name}.bias", [0.0] * len(y)))


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def add(a, b):
    return [x + y for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_loss_equal_the_equations(name):
    config = CONFIGS[name]
    model = randomise(GPT(config)).double()
    tokens, targets = draw_tokens(2, T), draw_tokens(2, T, seed=1)
    targets[0, 2] = targets[1, 5:] = -1  # ignored

    expected = [Equations(config, model).logits(sequence) for sequence in tokens.tolist()]
    expected = torch.tensor(expected, dtype=torch.float64)
    of_targets = expected.gather(2, targets.clamp(min=0)[..., None])[..., 0]
    losses = (expected.logsumexp(2) - of_targets)[targets != -1]
    assert len(losses) == 2 * T - 3

    logits, loss = model(tokens, targets)
    # the model's angles of RoPE are rounded to fp32: 2^-24 of at most T radians
    limit = 1e-6 if config.position == "rope" else 1e-13
    assert (logits - expected).abs().max() <= limit * expected.abs().max()
    assert loss.item() == pytest.approx(losses.mean().item(), rel=limit)
    assert torch.equal(model(tokens)[0], logits)
    assert model(tokens)[1] is None


def test_dropout_of_the_attention_weights_is_where_the_lecture_has_it(monkeypatch):
    """test_packed.py compares the outputs of every other dropout."""
    mask, x = torch.rand(T, T).double(), torch.randn(1, T, LECTURE.n_embd).double()
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda wei, *_: wei * mask)
    head = GPT(replace(LECTURE, dropout=0.2)).double().blocks[0].sa.heads[0]
    assert head.dropout.p == 0.2
    q, k, v = head.query(x), head.key(x), head.value(x)
    scores = (q @ k.mT / 16**0.5).masked_fill(torch.ones(T, T).triu(1) > 0, -torch.inf)
    torch.testing.assert_close(head(x), (scores.softmax(-1) * mask) @ v)


@pytest.mark.parametrize(
    ("preset", "vocab_size", "parameters"),
    [("lecture", 65, 10_788_929), ("gpt2", 50_257, 124_439_808)],
)
def test_the_lecture_and_gpt2_have_their_numbers_of_parameters(preset, vocab_size, parameters):
    with torch.device("meta"):
        model = GPT(replace(PRESETS[preset].model, vocab_size=vocab_size, bias=True))
    assert sum(weight.numel() for weight in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("projection_init", "projection_std"),
    [("normal", 0.02), ("scaled", 0.02 / math.sqrt(2 * 3)), ("zero", 0.0)],
)
def test_initial_weights(projection_init, projection_std):
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=65, n_layer=3, projection_init=projection_init)
    for name, weight in GPT(config).named_parameters():
        if "ln" in name or name.endswith("bias"):
            assert (weight == float(name.endswith("weight"))).all(), name
        else:
            back_to_the_residual = name.endswith((".sa.proj.weight", ".ffwd.net.2.weight"))
            std = projection_std if back_to_the_residual else 0.02
            assert weight.std().item() == pytest.approx(std, rel=0.02), name
            assert weight.mean().item() == pytest.approx(0, abs=0.02 * 0.02), name
