"""What an algorithm takes and gives, read from its annotations.

Input is converted to the annotated type before the code runs, and refused with the path of the
offending field when it does not fit. Types become JSON Schema for the directory.
"""

import inspect
import sys
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from algomesh import content
from algomesh.errors import BadInput

_PLAIN: tuple[object, ...] = (inspect.Parameter.empty, Any, object)


class Signature(NamedTuple):
    """How to read the input, and the annotated types; their JSON Schemas are made when somebody wants them."""

    read: Callable[[str, str, bytes | memoryview], Any]
    takes: Any
    gives: Any

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


def _reader(wanted: Any) -> Callable[[str, str, bytes | memoryview], Any]:
    if any(wanted is plain for plain in _PLAIN):
        return content.decode
    if wanted is str:
        return _read_text
    if wanted in (bytes, bytearray, memoryview):
        return _read_bytes(wanted)
    array = _array_kind(wanted)
    if array:
        return _read_array(array)
    try:
        decoder = msgspec.json.Decoder(wanted)
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


def _read_bytes(wanted: type) -> Callable[[str, str, bytes | memoryview], Any]:
    def read(content_type: str, detail: str, payload: bytes | memoryview) -> Any:
        if content_type not in ("binary", "text"):
            raise BadInput(f"bytes are wanted, {content_type} came: $")
        return wanted(payload)

    return read


def _read_array(kind: str) -> Callable[[str, str, bytes | memoryview], Any]:
    def read(content_type: str, detail: str, payload: bytes | memoryview) -> Any:
        value = content.decode(content_type, detail, payload)
        if content_type == "json" and isinstance(value, list | int | float):
            value = _array_of(value)
        elif content_type != "tensor":
            raise BadInput(f"an array is wanted, {content_type} came: $")
        if kind == "torch":
            import torch

            return value if isinstance(value, torch.Tensor) else torch.from_numpy(value.copy())
        return value if type(value).__module__ == "numpy" else value.numpy()

    return read


def _array_of(value: Any) -> Any:
    import numpy as np

    try:
        array = np.asarray(value)
    except ValueError as error:
        raise BadInput(f"the rows are not of one length: {error}") from error
    if array.dtype.kind not in "biuf":
        raise BadInput("an array is wanted, and the list holds more than numbers: $")
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _read_json(wanted: Any, decoder: "msgspec.json.Decoder[Any]") -> Callable[[str, str, bytes | memoryview], Any]:
    def read(content_type: str, detail: str, payload: bytes | memoryview) -> Any:
        try:
            if content_type == "json":
                return decoder.decode(payload)
            return msgspec.convert(content.decode(content_type, detail, payload), wanted)
        except msgspec.ValidationError as error:
            where = "" if "`$" in str(error) else " - at `$`"
            raise BadInput(f"the input does not fit: {error}{where}") from error
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise BadInput(f"this is not JSON: {error or type(error).__name__}") from error

    return read


def _named(content_type: str, value: Any) -> str:
    return f"{content_type} ({type(value).__name__})" if content_type == "json" else content_type


def _array_kind(wanted: Any) -> str:
    origin = typing.get_origin(wanted) or wanted
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and isinstance(origin, type) and issubclass(origin, numpy.ndarray):
        return "numpy"
    if torch is not None and isinstance(origin, type) and issubclass(origin, torch.Tensor):
        return "torch"
    return ""


def _schema(wanted: Any) -> bytes:
    if any(wanted is plain for plain in _PLAIN):
        return b""
    kind = _array_kind(wanted)
    if kind:
        return msgspec.json.encode({"type": "array", "description": f"a {kind} array of numbers"})
    if wanted in (bytes, bytearray, memoryview):
        return msgspec.json.encode({"type": "string", "contentEncoding": "binary"})
    try:
        return msgspec.json.encode(msgspec.json.schema(wanted))
    except (TypeError, ValueError, NotImplementedError):
        return b""
