"""A model's weights under the names of the packed GPT, whichever implementation trained them."""

import torch

from ..models import reference
from ..models.build import Model
from ..models.layouts import check_layout, lecture_from_packed, packed_from_lecture

TABLE, HEAD = "token_embedding_table.weight", "lm_head.weight"


def portable_state(model: Model) -> dict[str, torch.Tensor]:
    """The weights under the names of the packed model, whichever implementation trained them."""
    state = model.state_dict()
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
    check_layout(model.state_dict(), state)
    model.load_state_dict(state)
