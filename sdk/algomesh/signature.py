"""What an algorithm takes and gives, read from its annotations.

Input is converted to the annotated type before the code runs, and refused with the path of the offending field when it
does not fit. What has one obvious reading is converted: a JSON list to an array (conversions.py), text to bytes, the
parts of a bundle one by one. Nothing is lost silently. Types become JSON Schema for the directory.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from algomesh import content, conversions, streams
from algomesh.errors import BadInput
from algomesh.kinds import array_kind

_PLAIN: tuple[object, ...] = (inspect.Parameter.empty, Any, object)
_Read = Callable[[str, str, bytes | memoryview], Any]


class Signature(NamedTuple):
    """How to read the input, and the annotated types; their JSON Schemas are made when somebody wants them."""

    read: Callable[[str, str, bytes | memoryview], Any]
    takes: Any
    gives: Any

    @property
    def read_item(self) -> Callable[[content.Content], Any]:
        """How to read one part, where parts are taken as they come."""
        read = _reader(streams.item_taken(self.takes))
        return lambda part: read(*part)

    @property
    def input_schema(self) -> bytes:
        """What it takes, as JSON Schema; b"" where nothing is known."""
        return _schema(self.takes)

    @property
    def output_schema(self) -> bytes:
        """What it gives, as JSON Schema; b"" where nothing is known."""
        return _schema(self.gives)


def read_signature(function: Callable[..., Any], *, method: bool = False) -> Signature:
    """The signature of a function of one argument (after `self` for a method).

    Raises TypeError when it does not take exactly one.
    """
    parameters = list(inspect.signature(function).parameters.values())[1 if method else 0 :]
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) > 1 or not parameters or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise TypeError(
            f"{function.__qualname__} takes {len(required)} arguments; an algorithm takes one "
            "(a dict or a Struct holds several)"
        )
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # a name that only a type checker can see; then nothing is known
        hints = {}
    wanted = hints.get(parameters[0].name, inspect.Parameter.empty)
    given = hints.get("return", inspect.Parameter.empty)
    return Signature(_reader(wanted), wanted, given)


def read_batch_signature(function: Callable[..., Any], *, method: bool = False) -> Signature:
    """What one caller of a batched function gives and gets: the items of the lists that it takes and returns.

    Raises TypeError when it does not take a list, or is annotated to return something else.
    """
    whole = read_signature(function, method=method)
    name = function.__qualname__
    taken, given = _item_of(whole.takes, f"{name} takes"), _item_of(whole.gives, f"{name} returns")
    return Signature(_reader(taken), taken, given)


def _item_of(annotation: Any, what: str) -> Any:
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if any(annotation is plain for plain in _PLAIN):
        return annotation
    if origin in (list, Sequence, Iterable, Collection) or (origin is tuple and arguments[1:] == (...,)):
        return arguments[0] if arguments else Any
    raise TypeError(f"{what} {annotation}; with batch=… it takes a list of inputs and returns a list of outputs")


def _reader(wanted: Any) -> _Read:
    if any(wanted is plain for plain in _PLAIN):
        return content.decode
    if wanted is str:
        return _read_text
    if wanted in (bytes, bytearray, memoryview):
        return _read_bytes(wanted)
    if array_kind(wanted):
        return _read_array(wanted)
    try:
        decoder = msgspec.json.Decoder(wanted, dec_hook=conversions.convert)
    except (TypeError, ValueError, NotImplementedError):
        return content.decode
    return _read_json(wanted, decoder)


def _read_text(content_type: str, detail: str, payload: bytes | memoryview) -> str:
    if content_type == "text":
        return content.decode_text(payload)
    value = content.decode(content_type, detail, payload)
    if isinstance(value, str):
        return value
    raise BadInput(f"text is wanted, {_named(content_type, value)} came: $")


def _read_bytes(wanted: type) -> _Read:
    def read(content_type: str, detail: str, payload: bytes | memoryview) -> Any:
        if content_type not in ("binary", "text"):
            raise BadInput(f"bytes are wanted, {content_type} came: $")
        return wanted(payload)

    return read


def _read_array(wanted: Any) -> _Read:
    def read(content_type: str, detail: str, payload: bytes | memoryview) -> Any:
        value = content.decode(content_type, detail, payload)
        if content_type == "bundle" and isinstance(value, list):
            return conversions.stack(wanted, value)
        if content_type == "tensor" or (content_type == "json" and isinstance(value, list | int | float)):
            return conversions.to_array(wanted, value)
        raise BadInput(f"an array is wanted, {_named(content_type, value)} came: $")

    return read


def _read_json(wanted: Any, decoder: "msgspec.json.Decoder[Any]") -> _Read:
    def read(content_type: str, detail: str, payload: bytes | memoryview) -> Any:
        try:
            if content_type == "json":
                return decoder.decode(payload)
            if content_type == "bundle":
                value = _read_parts(content.read_bundle(payload), _part_reader(wanted))
            else:
                value = content.decode(content_type, detail, payload)
            return msgspec.convert(
                value, wanted, builtin_types=(bytes, bytearray, memoryview), dec_hook=conversions.convert
            )
        except msgspec.ValidationError as error:
            where = "" if "`$" in str(error) else " - at `$`"
            raise BadInput(f"the input does not fit: {error}{where}") from error
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise BadInput(f"this is not JSON: {error or type(error).__name__}") from error

    return read


def _part_reader(wanted: Any) -> Callable[[str], _Read]:
    """How the parts of a bundle are read that becomes a `wanted`: by the annotation of the item or field."""
    origin, arguments = typing.get_origin(wanted) or wanted, typing.get_args(wanted)
    fields: dict[str, _Read] = {}
    every: _Read = content.decode
    if isinstance(origin, type) and issubclass(origin, list | set | frozenset) and arguments:
        every = _reader(arguments[0])
    elif isinstance(origin, type) and issubclass(origin, dict) and len(arguments) == 2:
        every = _reader(arguments[1])
    else:
        fields = {name: _reader(hint) for name, hint in _fields_of(origin).items()}
    return lambda name: fields.get(name, every)


def _fields_of(wanted: Any) -> dict[str, Any]:
    """The fields of a Struct, a dataclass or a TypedDict, by the names they have in JSON."""
    if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
        return {field.encode_name: field.type for field in msgspec.structs.fields(wanted)}
    if dataclasses.is_dataclass(wanted) or typing.is_typeddict(wanted):
        return typing.get_type_hints(wanted)
    return {}


def _read_parts(bundle: content.Bundle, reader: Callable[[str], _Read]) -> Any:
    """The parts of a bundle, each read for itself; an error says which."""
    values = []
    for number, part in enumerate(bundle.parts):
        name = bundle.names[number] if bundle.names else ""
        try:
            values.append(reader(name)(*part))
        except BadInput as error:
            where = f"$.{name}" if bundle.names else f"$[{number}]"
            raise BadInput(f"{error.message} - in `{where}`") from error
    return dict(zip(bundle.names, values, strict=True)) if bundle.names else values


def _named(content_type: str, value: Any) -> str:
    return f"{content_type} ({type(value).__name__})" if content_type == "json" else content_type


def _schema(wanted: Any) -> bytes:
    if any(wanted is plain for plain in _PLAIN):
        return b""
    kind = array_kind(wanted)
    if kind:
        return msgspec.json.encode({"type": "array", "description": f"a {kind} array of numbers"})
    if wanted in (bytes, bytearray, memoryview):
        return msgspec.json.encode({"type": "string", "contentEncoding": "binary"})
    try:
        return msgspec.json.encode(msgspec.json.schema(wanted))
    except (TypeError, ValueError, NotImplementedError):
        return b""
