"""Kinds: in a few letters, what an algorithm takes and gives, so that neighbours in a pipeline can be compared.

    text  binary  tensor  json:array  json:object  json:number  json:boolean  json:null  json

`json:array[text]` says what the items are, `text|json:null` that either may be, and "" that nothing is known.
The directory carries them; the JSON Schemas in a manifest say more, and cost more to compare.
"""

import collections.abc
import sys
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from algomesh.errors import BadInput

_LONGEST: Final = 200
_DEEPEST: Final = 16
_STREAMS: Final = frozenset(
    {
        collections.abc.Iterator,
        collections.abc.Iterable,
        collections.abc.Generator,
        collections.abc.AsyncIterator,
        collections.abc.AsyncIterable,
        collections.abc.AsyncGenerator,
    }
)
_LISTS: Final = frozenset({list, set, frozenset, collections.abc.Sequence, collections.abc.Collection})
_OF_JSON: Final = {
    "integer": "json:number",
    "number": "json:number",
    "boolean": "json:boolean",
    "null": "json:null",
    "object": "json:object",
    "array": "json:array",
}


class Kind(NamedTuple):
    """What one stage takes or gives: the notation, how to say it to people, and which stage it is."""

    notation: str = ""
    shown: str = ""
    stage: str = ""

    def __str__(self) -> str:
        return self.notation + (f" ({self.shown})" if self.shown and self.shown != self.notation else "")


UNKNOWN: Final = Kind()


class Face(NamedTuple):
    """What a part of a pipeline shows to its neighbours. What comes must fit all of `takes`: branches share it."""

    takes: tuple[Kind, ...] = ()
    gives: Kind = UNKNOWN


def notation(wanted: Any, *, given: bool = False) -> str:
    """The kind of an annotated type; `given` for what is returned, where an iterator arrives as a list.

    "" for what has no annotation, may be anything, or is not known to JSON.
    """
    return _notation(wanted, given, 0)


def kind_of(wanted: Any, stage: str, *, given: bool = False) -> Kind:
    """The kind of an annotated type with its Python name; UNKNOWN where nothing is known."""
    found = notation(wanted, given=given)
    if not found:
        return UNKNOWN
    name = wanted.__name__ if isinstance(wanted, type) and not typing.get_args(wanted) else str(wanted)
    return Kind(found, name.replace("typing.", ""), stage)


def fits(gives: str, takes: str) -> bool:
    """Whether something of the kind `gives` may be read as `takes`; what is unknown fits everything."""
    if not gives or not takes:
        return True
    return any(_fits(one, other) for one in _split(gives) for other in _split(takes))


def array_of(items: str) -> str:
    """The kind of a list of `items`."""
    return f"json:array[{items}]" if items and len(items) <= _LONGEST else "json:array"


def either(notations: list[str]) -> str:
    """Any of several kinds; unknown where one of them is, or where there are too many to write down."""
    found = dict.fromkeys(part for one in notations for part in _split(one))
    joined = "|".join(found)
    return "" if not all(notations) or len(joined) > _LONGEST else joined


def check_neighbours(left: Face, right: Face) -> None:
    """Raise BadInput, with both types named, where what comes before cannot be read by what comes after."""
    for taken in right.takes:
        if not fits(left.gives.notation, taken.notation):
            raise BadInput(
                f"{left.gives.stage} gives {left.gives}, and {taken.stage} takes {taken}: the one cannot follow the "
                "other; put a stage between them that converts"
            )


def face_of_all(faces: list[Face], *, is_mapping: bool) -> Face:
    """What a fan-out of parts with these faces takes and gives."""
    takes = tuple(dict.fromkeys(kind for face in faces for kind in face.takes))
    if is_mapping:
        return Face(takes, Kind("json:object", "a mapping", "a fan-out"))
    items = either([face.gives.notation for face in faces])
    return Face(takes, Kind(array_of(items), "a list", "a fan-out"))


def face_of_each(body: Face) -> Face:
    """What each over a part with this face takes and gives."""
    takes = [Kind(_items(kind.notation), "a list", f"each {kind.stage}") for kind in body.takes]
    gives = Kind(array_of(body.gives.notation), "a list", f"each {body.gives.stage}".rstrip())
    return Face(tuple(takes) or (Kind(_items(""), "a list", "each"),), gives)


def _items(notation: str) -> str:
    """A list of these; an array counts as the list of its rows."""
    return array_of(notation) + ("|tensor" if fits("tensor", notation) else "")


def _fits(gives: str, takes: str) -> bool:
    given, _, given_items = gives.partition("[")
    taken, _, taken_items = takes.partition("[")
    if given == taken == "json:array":
        return fits(given_items[:-1], taken_items[:-1])
    if given == taken or (given == "text" and taken in ("binary", "json")):
        return True
    if taken == "tensor":
        is_list_of_numbers = given == "json:array" and fits(given_items[:-1], "tensor")
        return is_list_of_numbers or given in ("json", "json:number", "json:boolean")
    return (taken == "json" and given.startswith("json:")) or (given == "json" and taken != "binary")


def _split(text: str) -> Iterator[str]:
    """The alternatives of a notation; what stands in brackets belongs to its list."""
    depth = start = 0
    for index, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if letter == "|" and depth == 0:
            yield text[start:index]
            start = index + 1
    yield text[start:]


def _notation(wanted: Any, given: bool, depth: int) -> str:
    if depth > _DEEPEST:
        return ""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Annotated:
        return _notation(arguments[0], given, depth + 1)
    if origin in (typing.Union, types.UnionType):
        return either([_notation(argument, given, depth + 1) for argument in arguments])
    if wanted is str:
        return "text"
    if wanted in (bytes, bytearray, memoryview):
        return "binary"
    if array_kind(wanted):
        return "tensor"
    if (origin or wanted) in _STREAMS:
        return array_of(_notation(arguments[0], given, depth + 1) if arguments else "") if given else ""
    if (origin or wanted) in _LISTS:
        return array_of(_notation(arguments[0], given, depth + 1) if arguments else "")
    return _of_schema(wanted)


def array_kind(wanted: Any) -> str:
    """`numpy` or `torch` for their arrays, else ""."""
    origin = typing.get_origin(wanted) or wanted
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and isinstance(origin, type) and issubclass(origin, numpy.ndarray):
        return "numpy"
    if torch is not None and isinstance(origin, type) and issubclass(origin, torch.Tensor):
        return "torch"
    return ""


def _of_schema(wanted: Any) -> str:
    if wanted is Any or wanted is object:
        return ""
    try:
        (schema,), components = msgspec.json.schema_components([wanted], schema_hook=_any_schema)
    except (TypeError, ValueError, NotImplementedError, RecursionError):
        return ""
    return _read_schema(schema, components)


def _any_schema(wanted: Any) -> dict[str, Any]:
    """A type that JSON does not know, inside one that it does."""
    if array_kind(wanted):
        return {"type": "array"}
    raise NotImplementedError


def _read_schema(schema: dict[str, Any], components: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _read_schema(components[schema["$ref"].rpartition("/")[2]], components)
    if "anyOf" in schema:
        return either([_read_schema(one, components) for one in schema["anyOf"]])
    if "enum" in schema:
        return either(["text" if isinstance(value, str) else "json" for value in schema["enum"]])
    if schema.get("type") == "string":
        # A Decimal is read from a number too, and bytes in a union from what is binary.
        also = "json:number" if schema.get("format") == "decimal" else "binary" if "contentEncoding" in schema else ""
        return f"text|{also}" if also else "text"
    return _OF_JSON.get(schema.get("type", ""), "")
