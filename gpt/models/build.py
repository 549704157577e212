"""Build the model of a config: the packed GPT, the reference, or a stage of the lecture."""

import os

from .. import UserError
from ..config.model import ModelConfig
from . import lecture, reference
from .packed import GPT

Model = GPT | reference.GPT | lecture.LanguageModel


def build(config: ModelConfig, ops, stage: str = "") -> Model:
    """Build a GPT over `ops`, the reference if `ops` is None, or the named stage of the lecture."""
    if config.vocab_size < 1:
        raise UserError("the model needs a vocabulary; --vocab-size must be at least 1")
    C, T, L = config.n_embd, config.block_size, config.n_layer
    numbers = (
        (4 * C + 2 * config.feed_forward_width) * L * C
        + (config.vocab_size + T) * C
        + (ops is None) * L * config.n_head * T**2  # each head keeps one, as in the lecture
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * numbers > memory:
        raise UserError(
            f"a model of these sizes needs {4e-9 * numbers:,.0f} GB, and this machine has "
            f"{1e-9 * memory:,.0f}; choose a smaller --n-embd, --n-layer or --block-size"
        )
    if stage:
        if stage not in lecture.STAGES:
            stages = ", ".join(lecture.STAGES)
            raise UserError(f"--lecture {stage} is unknown; choose one of {stages}")
        return lecture.STAGES[stage](config)
    return reference.GPT(config) if ops is None else GPT(config, ops)
