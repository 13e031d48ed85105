"""The host's console, told to name folders as they are."""

from collections.abc import Iterator
from contextlib import contextmanager

from nerfstudio.utils.rich_utils import CONSOLE

from loe_field.words import say


@contextmanager
def host_lines_as_they_are() -> Iterator[None]:
    """Within it the lines that the host logs, which name folders, are said as lines of this package: without markup."""
    CONSOLE.log = lambda *words, **_: say(" ".join(map(str, words)), CONSOLE)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del CONSOLE.log  # back to the class's own
