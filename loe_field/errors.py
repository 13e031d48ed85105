"""Errors that are meant for the person at the keyboard."""


class InputError(ValueError):
    """Input that cannot be used; the message says what came, what was wanted and what to do."""
