"""The language model: the lecture's modules, the fast model, data, optimizers, generation."""


class UserError(ValueError):
    """A user's mistake: one sentence that says what is wrong and what to do about it."""
