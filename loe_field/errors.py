"""Errors that are meant for the person at the keyboard."""


class InputError(SystemExit, ValueError):
    """Something that the user gave cannot be used: the message says what came, what was wanted and what to do.

    Being a ValueError it can be caught like any other. Uncaught it ends the process as a SystemExit does: its message
    on stderr, exit status 1, no traceback; also inside tools of the host that know nothing of this package.
    """

    def __init__(self, message: str) -> None:
        super().__init__(f"error: {message}")
