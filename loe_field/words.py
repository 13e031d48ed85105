"""Words for people: what a name from outside holds is shown, never obeyed by a terminal or a page."""

import re
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def printable(text: object, encoding: str | None = None) -> str:
    r"""Text in one line that no terminal takes for a command and every one can show.

    What Unicode does not call printable stands as a Python escape: control characters, line ends, marks that turn the
    direction of writing, bytes of a name that are no text. With an encoding so does whatever it does not have.

    Example:
        >>> print(printable("a\x1b[31m\n\u202eb\udcff"))
        a\x1b[31m\n\u202eb\udcff
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return shown if encoding is None else shown.encode(encoding, "backslashreplace").decode(encoding)


def say(text: object, to: "Console | TextIO") -> None:
    """Print a line on a console of rich or on a stream; nothing in it is markup."""
    line = printable(text, to.encoding)
    if hasattr(to, "print"):
        to.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)  # type: ignore[union-attr]
    else:
        print(line, file=to)  # type: ignore[arg-type]


def natural_order(text: str) -> tuple[list[Any], str]:
    """A key that sorts 2.png before 10.png, whatever the case unless nothing else differs."""
    parts = re.split(r"(\d+)", text.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], text
