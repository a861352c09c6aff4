"""Reads the settings of a program from its environment: each field of a dataclass says which variable holds it.

    keep_days: Annotated[float, Variable("ALGOMESH_KEEP_DAYS", "days that runs are kept"), Meta(gt=0, le=36_500)] = 30.0

The type and msgspec's `Meta(gt=, ge=, le=)` are what is allowed, the default is what holds without the variable; where
there is none, the variable must be set. msgspec converts and checks, what is wrong is worded here. A field without a
`Variable` is not read. A variable that is blank counts as not set, but for a list, which is then empty. Give every
number that may be a fraction a `le`: without one `inf` is a number.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

from msgspec import Meta, ValidationError, convert

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

_NOTHING: Final[Mapping[str, object]] = {}


class BadSetting(ValueError):
    """A variable of the environment is missing or not what it should be; the sentence names it."""


@dataclass(frozen=True)
class Variable:
    """Where a setting comes from, and one line that says what it is.

    `parse` makes of the text what msgspec is given, where a type has no common form; it raises ValueError with what is
    wrong. What a secret one holds is in no error.
    """

    name: str
    help: str
    parse: Callable[[str], object] | None = None
    is_secret: bool = False


def read(
    settings: type[T],
    environment: Mapping[str, str] = os.environ,
    *,
    program: str,
    defaults: Mapping[str, object] = _NOTHING,
) -> T:
    """`settings` as the environment of `program` has them.

    `defaults`, by field, are for what is found out first, and for the fields that come from elsewhere.
    Raises BadSetting: all that are missing, or the first that is wrong.
    """
    values, missing = dict(defaults), list[Variable]()
    hints = get_type_hints(settings, include_extras=True)
    for field in fields(settings):
        variable = _variable(hints[field.name])
        if variable is None:
            continue
        text = environment.get(variable.name)
        if text is not None and (text.strip() or _is_list(hints[field.name])):
            values[field.name] = _converted(variable, text.strip(), hints[field.name])
        elif field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            missing.append(variable)
    if missing:
        missing.sort(key=lambda each: each.name)
        names = " and ".join(each.name for each in missing)
        meaning = "; ".join(f"{each.name} is {each.help}" for each in missing)
        raise BadSetting(f"set {names} in the environment of the {program}: {meaning}")
    return settings(**values)


def listed(text: str) -> tuple[str, ...]:
    """The parts between commas, in order, without blanks and doubles."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _variable(hint: Any) -> Variable | None:
    return next((each for each in _extras(hint) if isinstance(each, Variable)), None)


def _converted(variable: Variable, text: str, hint: Any) -> object:
    shown = variable.name if variable.is_secret else f"{variable.name}={text!r}"
    try:
        given = (variable.parse or (listed if _is_list(hint) else str))(text)
    except ValueError as error:
        said = "cannot be read" if variable.is_secret else str(error)  # its words may quote the text
        raise BadSetting(f"{variable.name}: {said} ({variable.help})") from None if variable.is_secret else error
    try:
        return convert(given, hint, strict=False, dec_hook=_path)
    except ValidationError as error:
        raise BadSetting(f"{shown} is {_fault(hint)} ({variable.help})") from None if variable.is_secret else error


def _path(type_: type, text: str) -> Path:
    if type_ is not Path:
        raise NotImplementedError(f"a setting cannot be of type {type_}")
    return Path(text).absolute()


def _fault(hint: Any) -> str:
    """What a value that msgspec refuses is not."""
    kind = _kind(hint)
    if get_origin(kind) is Literal:
        return f"none of {', '.join(map(str, get_args(kind)))}"
    if get_args(kind):  # a list, or names with values
        return f"wrong in a part that is {_fault(get_args(kind)[-1])}"
    if kind is bool:
        return "neither true nor false"
    return f"not a {'whole ' if kind is int else ''}number{_bounds(hint)}"


def _bounds(hint: Any) -> str:
    meta = next((each for each in _extras(hint) if isinstance(each, Meta)), Meta())
    if meta.ge is not None and meta.le is not None:
        return f" from {_written(meta.ge)} to {_written(meta.le)}"
    least = "" if meta.gt is None else f" above {_written(meta.gt)}"
    least = least if meta.ge is None else f" from {_written(meta.ge)} on"
    return least if meta.le is None else f"{least}, at most {_written(meta.le)}"


def _written(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _is_list(hint: Any) -> bool:
    return get_origin(_kind(hint)) is tuple


def _kind(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _extras(hint: Any) -> tuple[Any, ...]:
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()
