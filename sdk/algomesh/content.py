"""Values as they travel: text, JSON, binary, tensor.

`str` is text, bytes-like is binary, numpy arrays and torch tensors are tensor (dtype, shape and the
memory itself), everything else is JSON by msgspec: dataclasses, Structs, datetimes and the like
included. NaN and infinity have no JSON form and are refused, though msgspec would write null.
"""

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from algomesh.errors import BadInput, BadOutput, MeshError
from algomesh_broker.messages import ContentType

if TYPE_CHECKING:
    import numpy

_json = msgspec.json.Encoder()
_from_json = msgspec.json.Decoder().decode
_HOW = "return text, bytes, an array, or what JSON can say"
_DEEPEST = 200


class Content(NamedTuple):
    """A value, encoded: `payload` is raw, `detail` is `kind/dtype/shape` for a tensor."""

    content_type: ContentType
    detail: str
    payload: bytes | memoryview

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
    tensor = _encode_tensor(value)
    return tensor if tensor is not None else Content("json", "", encode_json(value))


def encode_json(value: Any) -> bytes:
    """JSON bytes. Raises BadOutput for what JSON cannot say, NaN included."""
    try:
        data = _json.encode(value)
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
        return _decode_tensor(detail, payload)
    if content_type != "json":
        raise BadInput(f"{content_type!r} is no content type; it is text, json, binary or tensor")
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


def _encode_tensor(value: Any) -> Content | None:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _encode_array("numpy", value)
    if numpy is not None and isinstance(value, numpy.generic):
        return Content("json", "", encode_json(value.item()))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        if tensor.dtype is torch.bfloat16:
            return _encode_array("torch", tensor.view(torch.int16).numpy(), dtype="bfloat16")
        try:
            return _encode_array("torch", tensor.numpy())
        except TypeError as error:
            raise BadOutput(f"a tensor of {tensor.dtype} cannot travel: {error}") from error
    return None


def _encode_array(kind: str, array: "numpy.ndarray[Any, Any]", dtype: str = "") -> Content:
    import numpy as np

    if array.dtype.hasobject or array.dtype.names is not None:
        raise BadOutput(f"an array of dtype {array.dtype} cannot travel; use numbers, bool or fixed-size bytes")
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
    shape = ",".join(map(str, array.shape))
    name = dtype or (array.dtype.name if array.dtype.kind in "biufc" else array.dtype.str)
    flat = np.ascontiguousarray(array).reshape(-1)
    payload = memoryview(flat.view(np.uint8).data) if flat.size else b""
    return Content("tensor", f"{kind}/{name}/{shape}", payload)


def _decode_tensor(detail: str, payload: bytes | memoryview) -> Any:
    try:
        import numpy as np
    except ImportError as error:
        raise MeshError("this is an array, and numpy is not installed here: pip install numpy") from error
    try:
        kind, dtype, dimensions = detail.split("/")
        shape = tuple(int(size) for size in dimensions.split(",")) if dimensions else ()
        raw = np.dtype("int16" if dtype == "bfloat16" else dtype)
        if raw.hasobject or any(size < 0 for size in shape):
            raise ValueError("only plain numbers and sizes from 0 on")
        array = np.frombuffer(payload, dtype=raw).reshape(shape)
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"this is not a tensor {detail!r} of {len(payload)} bytes: {error}") from error
    if kind != "torch":
        return array
    try:
        import torch
    except ImportError:
        return array
    # A tensor may be written to; the message it lies in must not be.
    tensor = torch.from_numpy(array.copy())
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
