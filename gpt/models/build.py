"""A model by its description: the reference, the fast model, or a step of the lecture's road."""

import torch
import torch.nn as nn

from gpt import UserError, hardware
from gpt.config.model import ModelConfig
from gpt.models import lecture, reference
from gpt.models.layouts import check_layout, lecture_from_packed, packed_from_lecture
from gpt.models.packed import GPT
from gpt.training import distributed

MOST_LAYERS = 4096


def build(config: ModelConfig, ops, step: str = "") -> nn.Module:
    """`ops` is a table of operations, or None for the reference; `step` names the lecture's."""
    check(config, masks=ops is None)
    if step:
        if step not in lecture.STEPS:
            raise UserError(f"--lecture {step} is unknown; choose of {', '.join(lecture.STEPS)}")
        return lecture.STEPS[step](config)
    return reference.GPT(config) if ops is None else GPT(config, ops)


def check(config: ModelConfig, masks: bool) -> None:
    """Refuse sizes that make no model, or none that this machine can hold.

    `masks`: each head keeps a (T, T) mask, as in the lecture.
    """
    for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    if config.n_layer > MOST_LAYERS:
        raise UserError(f"--n-layer must be at most {MOST_LAYERS}")
    C, T, L = config.n_embd, config.block_size, config.n_layer
    numbers = (
        (12 + 16 * (config.source_size > 0)) * L * C**2
        + (config.vocab_size + T) * C
        + masks * L * config.n_head * T**2
    )
    memory = hardware.physical_memory()
    if 4 * numbers > memory:
        raise UserError(
            f"a model of these sizes needs {4e-9 * numbers:,.0f} GB, and this machine has "
            f"{1e-9 * memory:,.0f}; choose a smaller --n-embd, --n-layer or --block-size"
        )
    for name in ("dropout", "embedding_dropout"):
        if not 0.0 <= getattr(config, name) < 1.0:
            raise UserError(f"--{name.replace('_', '-')} must be at least 0 and less than 1")
    if not 0.0 <= config.logit_softcap < float("inf"):
        raise UserError("--logit-softcap must be a number of at least 0")
    if config.n_embd % config.n_head:
        raise UserError(
            f"--n-embd {config.n_embd} cannot be divided into {config.n_head} heads; "
            "choose --n-head so that it divides --n-embd"
        )
    if config.n_kv_head < 0 or (config.n_kv_head and config.n_head % config.n_kv_head):
        raise UserError(
            f"--n-kv-head {config.n_kv_head} does not divide --n-head {config.n_head}; choose one "
            "that does, or 0 for as many"
        )
    if config.window < 0:
        raise UserError("--window must be at least 1, or 0 for the whole context")
    if not 0 <= config.source_size < config.block_size:
        raise UserError("--source-size must be at least 0 and less than --block-size")
    if config.position == "rope" and config.n_embd // config.n_head % 2:
        raise UserError("--position rope turns channels in pairs, so the head size must be even")


def portable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights under the names of the packed model, whichever implementation trained them."""
    state = distributed.whole_on_main(model.state_dict())
    if isinstance(model, reference.GPT):
        state = packed_from_lecture(state, model.config)
    if model.config.tied_head:
        for name in _as_head(state):
            state.pop(name, None)  # one tensor, kept once
    return state


def load_portable_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Set the weights that `portable_state` gave; `UserError` when they are another model's."""
    if model.config.tied_head:
        state = _as_head(state) | state
    if isinstance(model, reference.GPT):
        state = lecture_from_packed(state, model.config)
    own = model.state_dict()
    check_layout(own, state)
    model.load_state_dict({name: distributed.shared_like(state[name], own[name]) for name in state})


def _as_head(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The token table under the names of a tied head."""
    table, head = "token_embedding_table.", "lm_head."
    return {name.replace(table, head): state[name] for name in state if name.startswith(table)}
