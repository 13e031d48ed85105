"""Checks of arguments: each raises a ValueError that says what came and what was wanted."""

from typing import Any, get_args


def check_choice(name: str, value: str, choices: Any) -> None:
    """The value must be one of a Literal's choices; name is the word for what is chosen."""
    if value not in get_args(choices):
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(get_args(choices))}")


def check_at_least(least: int, **values: int) -> None:
    """No value may be below least."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {value}: it must be at least {least}")


def check_between(least: int, most: int, **values: int) -> None:
    """Every value must be from least to most."""
    for name, value in values.items():
        if not least <= value <= most:
            raise ValueError(f"{name} is {value}: it must be {least:,} to {most:,}")


def check_positive(**values: float) -> None:
    """All values must be positive and finite."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value}: it must be positive")
