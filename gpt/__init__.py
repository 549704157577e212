"""The language model: configs, data, models, training, runs and generation."""


class UserError(ValueError):
    """A mistake of the user: one printable line that says what is wrong and what to do."""

    def __str__(self) -> str:
        """The sentence, in which a line break or an escape sequence of a name is spelled out."""
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in super().__str__())
