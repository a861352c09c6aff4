"""Arrays and tensors as they travel: `kind/dtype/shape` and the memory itself, read without a copy.

numpy and torch are never imported for somebody who has neither: an array can only come from a process that has.
"""

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from algomesh.errors import BadInput, BadOutput, MeshError

if TYPE_CHECKING:
    import numpy

_MOST_EMPTY_ROWS = 1_000_000


class Encoded(NamedTuple):
    """An array: what it is, and its memory."""

    detail: str
    payload: bytes | memoryview


def encode_array(value: Any) -> Encoded | None:
    """A numpy array or a torch tensor, encoded; None for anything else. Raises BadOutput."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _encode_array("numpy", value)
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


def decode_array(detail: str, payload: bytes | memoryview) -> Any:
    """The array. Raises BadInput."""
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


def rows(detail: str, payload: bytes | memoryview) -> list[Encoded]:
    """The array along its first axis, without numpy and without a copy. Raises BadInput."""
    try:
        kind, dtype, dimensions = detail.split("/")
        shape = [int(size) for size in dimensions.split(",")] if dimensions else []
    except ValueError as error:
        raise BadInput(f"this is not a tensor {detail!r}: {error}") from error
    if not shape:
        raise BadInput("a list is wanted, for each of its items; an array without dimensions came: $")
    count, memory = shape[0], memoryview(payload)
    if count < 0 or (count and len(memory) % count) or (not memory and count > _MOST_EMPTY_ROWS):
        raise BadInput(f"this is not a tensor {detail!r} of {len(memory)} bytes that has rows")
    size = len(memory) // count if count else 0
    row = f"{kind}/{dtype}/{','.join(map(str, shape[1:]))}"
    return [Encoded(row, memory[at * size : (at + 1) * size]) for at in range(count)]


def _encode_array(kind: str, array: "numpy.ndarray[Any, Any]", dtype: str = "") -> Encoded:
    import numpy as np

    if array.dtype.hasobject or array.dtype.names is not None:
        raise BadOutput(f"an array of dtype {array.dtype} cannot travel; use numbers, bool or fixed-size bytes")
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
    shape = ",".join(map(str, array.shape))
    name = dtype or (array.dtype.name if array.dtype.kind in "biufc" else array.dtype.str)
    flat = np.ascontiguousarray(array).reshape(-1)
    payload = memoryview(flat.view(np.uint8).data) if flat.size else b""
    return Encoded(f"{kind}/{name}/{shape}", payload)
