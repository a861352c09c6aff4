"""Values as they travel: text, JSON, binary, tensor, bundle.

`str` is text, bytes-like is binary, numpy arrays and torch tensors are tensor (arrays.py), everything else is JSON by
msgspec: dataclasses, Structs, datetimes and the like included. NaN and infinity have no JSON form and are refused,
though msgspec would write null.

`join` makes one content of several and `split` several of one, as fan-outs and eaches do. Texts and JSON become one
JSON array or object by putting their bytes together, so that a join decodes nothing. Where an array, bytes or a bundle
is among them they become a bundle: msgpack of `[names, [[content_type, detail, payload], …]]`, read without a copy.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from algomesh.arrays import decode_array, encode_array, rows
from algomesh.errors import BadInput, BadOutput
from algomesh_broker.messages import ContentType

_Part = tuple[ContentType, str, memoryview]
_json = msgspec.json.Encoder()
_from_json_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[list[str], list[_Part]]).decode
_LIST_WANTED = "a list is wanted, for each of its items"
_from_json = msgspec.json.Decoder().decode
_HOW = "return text, bytes, an array, or what JSON can say"
_DEEPEST = 200
_BINARY = frozenset({bytes, bytearray, memoryview})


class Content(Struct, frozen=True, gc=False):
    """A value, encoded: `payload` is raw, `detail` is `kind/dtype/shape` for a tensor.

    It can be unpacked, like a tuple of the three, and is made in a fifth of the time.
    """

    content_type: ContentType
    detail: str
    payload: bytes | memoryview

    def __iter__(self) -> Iterator[Any]:
        return iter((self.content_type, self.detail, self.payload))

    @property
    def size_bytes(self) -> int:
        """The payload's length."""
        return len(self.payload)


def encode(value: Any) -> Content:
    """Encode a value for the wire. Raises BadOutput with what cannot travel and where it is."""
    if isinstance(value, str):
        try:
            return Content("text", "", value.encode())
        except UnicodeEncodeError as error:
            raise BadOutput(f"the text holds half a character (a lone surrogate) at {error.start}") from error
    if isinstance(value, bytes):
        return Content("binary", "", value)
    if isinstance(value, bytearray | memoryview):
        return Content("binary", "", bytes(value))
    array = encode_array(value)
    if array is not None:
        return Content("tensor", *array)
    parts = _parts_with_bytes(value)
    if parts is None:
        try:
            return Content("json", "", encode_json(value))
        except BadOutput:
            parts = _parts_with_arrays(value)
            if parts is None:
                raise
    return join([encode(part) for part in parts], list(value) if isinstance(value, Mapping) else [])


def encode_json(value: Any) -> bytes:
    """JSON bytes. Raises BadOutput for what JSON cannot say, NaN included."""
    numpy = sys.modules.get("numpy")
    try:
        data = _json.encode(value.item() if numpy is not None and isinstance(value, numpy.generic) else value)
    except RecursionError as error:
        raise BadOutput("the value is nested too deeply, or holds itself") from error
    except UnicodeEncodeError as error:
        raise BadOutput("a text in the value holds half a character (a lone surrogate)") from error
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise BadOutput(f"{error}; {_HOW}") from error
    # msgspec writes NaN and infinity as null: where a null is, look what it was.
    if b"null" in data and (where := _find_not_finite(value, "$")):
        raise BadOutput(f"{where}, which JSON cannot say; replace it or return an array")
    return data


def decode(content_type: str, detail: str, payload: bytes | memoryview) -> Any:
    """The value as plain Python: str, bytes, what JSON says, a numpy array or a torch tensor.

    Raises BadInput when the payload is not what `content_type` says.
    """
    if content_type == "text":
        return decode_text(payload)
    if content_type == "binary":
        return bytes(payload)
    if content_type == "tensor":
        return decode_array(detail, payload)
    if content_type == "bundle":
        return _decode_bundle(payload)
    if content_type != "json":
        raise BadInput(f"{content_type!r} is no content type; it is text, json, binary, tensor or bundle")
    try:
        return _from_json(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(f"this is not JSON: {error or type(error).__name__}") from error


def decode_text(payload: bytes | memoryview) -> str:
    """UTF-8 text. Raises BadInput."""
    try:
        return str(payload, "utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"the text is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from error


class Bundle(NamedTuple):
    """The parts of a bundle, not decoded; with `names` it is a mapping, else a list."""

    names: list[str]
    parts: list[Content]


def join(contents: Sequence[Content], names: Sequence[str] = ()) -> Content:
    """One content of several: a list, or a mapping where there are `names`. Raises BadInput for text that is none."""
    if any(part.content_type not in ("text", "json") for part in contents):
        return Content("bundle", "", _pack((list(names), [tuple(part) for part in contents])))
    pieces = [
        _json.encode(decode_text(part.payload)) if part.content_type == "text" else part.payload for part in contents
    ]
    if not names:
        return Content("json", "", b"[" + b",".join(pieces) + b"]")
    named = [_json.encode(name) + b":" + piece for name, piece in zip(names, pieces, strict=True)]
    return Content("json", "", b"{" + b",".join(named) + b"}")


def split(whole: Content) -> list[Content]:
    """The items of a list: of JSON, of a bundle, or an array's along its first axis. Raises BadInput."""
    if whole.content_type == "json":
        try:
            return [Content("json", "", memoryview(item)) for item in _from_json_list(whole.payload)]
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise BadInput(f"{_LIST_WANTED}: {error or type(error).__name__}") from error
    if whole.content_type == "tensor":
        return [Content("tensor", *row) for row in rows(whole.detail, whole.payload)]
    if whole.content_type == "bundle":
        bundle = read_bundle(whole.payload)
        if not bundle.names:
            return bundle.parts
    raise BadInput(f"{_LIST_WANTED}; {'a mapping' if whole.content_type == 'bundle' else whole.content_type} came: $")


def read_bundle(payload: bytes | memoryview) -> Bundle:
    """The parts of a bundle. Raises BadInput."""
    try:
        names, parts = _unpack(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(f"this is no bundle: {error or type(error).__name__}") from error
    if names and (len(names) != len(parts) or len(set(names)) != len(names)):
        raise BadInput("this is no bundle: its names do not fit its parts")
    return Bundle(names, [Content(*part) for part in parts])


def _decode_bundle(payload: bytes | memoryview) -> Any:
    names, parts = read_bundle(payload)
    try:
        values = [decode(*part) for part in parts]
    except RecursionError as error:
        raise BadInput("this bundle is nested too deeply") from error
    return dict(zip(names, values, strict=True)) if names else values


def _parts_with_bytes(value: Any) -> list[Any] | None:
    """The parts of a list or mapping that has bytes in it, which JSON would make base64 texts of; else None."""
    if type(value) not in (list, tuple, dict):
        return None
    parts = value.values() if type(value) is dict else value
    if _BINARY.isdisjoint(map(type, parts)) or (type(value) is dict and not all(isinstance(key, str) for key in value)):
        return None
    return list(parts)


def _parts_with_arrays(value: Any) -> list[Any] | None:
    """The parts of a list or mapping that has arrays in it, so that it can travel as a bundle; else None."""
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        return None
    return parts if any(type(part).__module__.partition(".")[0] in ("numpy", "torch") for part in parts) else None


def _find_not_finite(value: Any, path: str, depth: int = 0) -> str:
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{path} is {value}"
    if depth > _DEEPEST or isinstance(value, str | bytes | int):
        return ""
    if isinstance(value, Mapping):
        parts = [(f"{path}.{key}", item) for key, item in value.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    elif hasattr(value, "__struct_fields__") or hasattr(value, "__dataclass_fields__"):
        names = getattr(value, "__struct_fields__", None) or list(value.__dataclass_fields__)
        parts = [(f"{path}.{name}", getattr(value, name, None)) for name in names]
    else:
        return ""
    for where, item in parts:
        if found := _find_not_finite(item, where, depth + 1):
            return found
    return ""
