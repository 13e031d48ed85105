"""The one reader of what comes from outside - JSON, YAML, a checkpoint - by the types that classes here have."""

import inspect
import math
import numbers
from collections.abc import Sequence
from pathlib import Path
from reprlib import Repr
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from loe_field.errors import InputError

_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((numbers.Integral,), "a whole number"),
    float: ((numbers.Real,), "a finite number"),
    str: ((str,), "text"),
    bytes: ((bytes,), "bytes"),
    Path: ((str, Path), "a path"),
    NoneType: ((NoneType,), "nothing"),
}
_LISTS = (tuple, list, Sequence)
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60


class Between(NamedTuple):
    """Annotated[int, Between(1, 9)]: a number from least to most."""

    least: float
    most: float


def typed(kind: Any, value: Any, where: str, *, strict: bool = True) -> Any:
    """The value as its type has it.

    Args:
        kind: bool, int, float (finite), str, bytes, Path, None; a Literal; a union; Annotated, with Between or without;
            a tuple, list or sequence; a dict whose keys are text; or a class, which gets the dict's values as
            arguments, each as the type of that argument has it.
        value: anything.
        where: its name, for people.
        strict: a class must know every key of its dict.

    Raises:
        InputError: the value is of another type or out of range; or the class raises a ValueError for it.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        value = typed(inner[0], value, where, strict=strict)
        for limits in inner[1:]:
            if isinstance(limits, Between) and value is not None and not limits.least <= value <= limits.most:
                raise InputError(f"{where} is {value}: {limits.least:g} to {limits.most:g} is wanted")
        return value
    if origin in (Union, UnionType):
        return _one_of(inner, value, where, strict)
    if origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in inner):
            return value
        raise _wrong(where, value, f"one of {', '.join(map(str, inner))}")
    if kind in _PLAIN:
        return _plain(kind, value, where)
    if origin in _LISTS:
        if not isinstance(value, list | tuple):
            raise _wrong(where, value, "a list")
        any_length = origin is not tuple or inner[1:] == (...,)
        if not any_length and len(value) != len(inner):
            raise InputError(f"{where} has {len(value)} entries: {len(inner)} are wanted")
        kinds = [inner[0]] * len(value) if any_length else inner
        parts = [typed(k, part, f"{where}[{i}]", strict=strict) for i, (k, part) in enumerate(zip(kinds, value))]
        return parts if origin is list else tuple(parts)
    if kind is Any:
        return value
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _wrong(where, value, "a table of names and values")
    if origin is dict:
        return {key: typed(inner[1], part, f"{where}.{key}", strict=strict) for key, part in value.items()}
    return _built(kind, value, where, strict)


def _plain(kind: Any, value: Any, where: str) -> Any:
    types, wanted = _PLAIN[kind]
    if not isinstance(value, types) or (kind in (int, float) and isinstance(value, bool)):
        raise _wrong(where, value, wanted)
    try:
        value = value if kind is NoneType else kind(value)
    except OverflowError:  # a whole number beyond floats
        raise _wrong(where, value, wanted) from None
    if kind is float and not math.isfinite(value):
        raise _wrong(where, value, wanted)
    return value


def _one_of(kinds: Sequence[Any], value: Any, where: str, strict: bool) -> Any:
    """The value as the first kind that it fits; the first problem if it fits none."""
    problems = []
    for kind in kinds:
        try:
            return typed(kind, value, where, strict=strict)
        except InputError as error:
            problems.append(error)
    raise problems[0]


def _built(kind: Any, value: dict[str, Any], where: str, strict: bool) -> Any:
    known, kinds = inspect.signature(kind).parameters, get_type_hints(kind.__init__, include_extras=True)
    for name in value.keys() - known if strict else ():
        raise InputError(f"{where} has {_SHORT.repr(name)}: known are {', '.join(known)}")
    for name in known:
        if name not in value and known[name].default is inspect.Parameter.empty:
            raise InputError(f"{where} has no {name}")
    given = {name: part for name, part in value.items() if name in known}
    parts = {name: typed(kinds[name], part, f"{where}.{name}", strict=strict) for name, part in given.items()}
    try:
        return kind(**parts)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: {error}") from None


def _wrong(where: str, value: Any, wanted: str) -> InputError:
    try:
        shown = _SHORT.repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        shown = type(value).__name__
    return InputError(f"{where} is {shown}: {wanted} is wanted")
