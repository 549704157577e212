"""A model's weights under the names of the packed GPT, whichever implementation trained them."""

import torch

from ..models import reference
from ..models.build import Model
from ..models.layouts import check_layout, lecture_from_packed, packed_from_lecture
from ..training import distributed

TABLE, HEAD = "token_embedding_table.weight", "lm_head.weight"


def portable_state(model: Model) -> dict[str, torch.Tensor]:
    """The weights under the names of the packed model, whichever implementation trained them."""
    state = distributed.full_on_main(model.state_dict())
    if isinstance(model, reference.GPT):
        state = packed_from_lecture(state, model.config)
    if model.config.tied_head:
        del state[HEAD]  # one tensor, kept once
    return state


def load_portable_state(model: Model, state: dict[str, torch.Tensor]) -> None:
    """Set the weights that `portable_state` gave; `UserError` when they are another model's."""
    if model.config.tied_head and TABLE in state:
        state = {HEAD: state[TABLE]} | state
    if isinstance(model, reference.GPT):
        state = lecture_from_packed(state, model.config)
    own = model.state_dict()
    check_layout(own, state)
    model.load_state_dict({name: distributed.shard_like(state[name], own[name]) for name in state})
