"""The language model: configs, data, models, training, runs and generation."""


class UserError(ValueError):
    """A mistake of the user: one sentence that says what is wrong and what to do."""
