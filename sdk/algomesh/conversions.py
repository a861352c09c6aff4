"""What becomes an array without anybody asking: numbers in a JSON list, rows in a bundle, an array of a smaller type.

A list with fractions becomes float32 (or the annotated dtype), one of whole numbers int64. Rounding a fraction is
what float32 means; a whole number that float32 cannot hold, or one that overflows, is refused with its path.
"""

import typing
from typing import TYPE_CHECKING, Any

from algomesh.errors import BadInput
from algomesh.kinds import array_kind

if TYPE_CHECKING:
    import numpy

    _Array = numpy.ndarray[Any, Any]


def convert(wanted: Any, value: Any) -> Any:
    """For msgspec: a value in a list, mapping or Struct whose type it does not know. Raises BadInput."""
    if array_kind(wanted):
        return to_array(wanted, value)
    if isinstance(wanted, type) and isinstance(value, wanted):
        return value
    raise BadInput(f"{getattr(wanted, '__name__', wanted)} is wanted, {type(value).__name__} came")


def to_array(wanted: Any, value: Any) -> Any:
    """An array of the annotated type, of an array, a tensor, a number or nested lists of numbers. Raises BadInput."""
    kind, dtype = array_kind(wanted), _dtype_of(wanted)
    if isinstance(value, list | int | float):
        array = _of_numbers(value, dtype)
    elif array_kind(type(value)) == "torch":
        if kind == "torch":
            return value
        array = _as_dtype(_numpy_of(value), dtype)
    elif array_kind(type(value)) == "numpy":
        array = _as_dtype(value, dtype)
    else:
        raise BadInput(f"an array is wanted, {type(value).__name__} came")
    if kind == "torch":
        import torch

        return torch.from_numpy(array.copy())
    return array


def stack(wanted: Any, values: list[Any]) -> Any:
    """One array of several of one shape and dtype, along a new first axis. Raises BadInput."""
    import numpy as np

    rows: list[_Array] = []
    for number, value in enumerate(values):
        if not isinstance(value, list | int | float) and not array_kind(type(value)):
            raise BadInput(f"an array is wanted, {type(value).__name__} came - at `$[{number}]`")
        rows.append(to_array(np.ndarray, value))
        if (rows[-1].shape, rows[-1].dtype) != (rows[0].shape, rows[0].dtype):
            first, this = (f"{row.dtype} {list(row.shape)}" for row in (rows[0], rows[-1]))
            raise BadInput(f"the arrays differ, {first} and {this}, and make no single one - at `$[{number}]`")
    return to_array(wanted, np.stack(rows) if rows else [])


def _numpy_of(tensor: Any) -> "_Array":
    try:
        array: _Array = tensor.numpy()
    except TypeError as error:
        raise BadInput(f"a numpy array is wanted, and numpy has no {tensor.dtype}: {error}") from error
    return array


def _dtype_of(wanted: Any) -> "numpy.dtype[Any] | None":
    """The dtype in `NDArray[np.float32]`; None where any will do."""
    import numpy as np

    for argument in typing.get_args(wanted):
        for scalar in (*typing.get_args(argument), argument):
            if isinstance(scalar, type) and issubclass(scalar, np.generic):
                try:
                    return np.dtype(scalar)
                except TypeError:  # np.floating and the like: any of a family
                    return None
    return None


def _as_dtype(array: "_Array", dtype: "numpy.dtype[Any] | None") -> "_Array":
    import numpy as np

    if dtype is None or array.dtype == dtype:
        return array
    if np.can_cast(array.dtype, dtype, "safe"):
        return array.astype(dtype)
    raise BadInput(f"an array of {dtype} is wanted, one of {array.dtype} came, and would lose by it: $")


def _of_numbers(value: Any, dtype: "numpy.dtype[Any] | None") -> "_Array":
    import numpy as np

    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise BadInput(f"the rows are not of one length: {error}") from error
    if not array.size:
        return array.astype(dtype or np.float32)
    if array.dtype.kind not in "biuf":
        raise BadInput("an array is wanted, and the list holds more than numbers, or one beyond 64 bits: $")
    target = dtype or np.dtype(np.float32 if array.dtype.kind == "f" else array.dtype)
    if target == array.dtype and target.kind != "f":
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        made = array.astype(target)
    _check_kept(value, array, made)
    return made


def _check_kept(value: Any, before: "_Array", after: "_Array") -> None:
    """Refuse a whole number that came out as another, and a fraction that became whole, or infinite."""
    import numpy as np

    doubtful = before != after
    if after.dtype.kind == "f":
        # Rounding a fraction is what the type is for. Beyond 53 bits numpy itself has rounded what was written.
        exact = 2.0 ** (np.finfo(after.dtype).nmant + 1)
        size = np.abs(before.astype(np.float64))
        doubtful = (doubtful & (size > exact) & (np.trunc(size) == size)) | (size >= 2.0**53) | ~np.isfinite(after)
    for place in np.argwhere(doubtful):
        number = value
        for index in place:
            number = number[index]
        kept = after[tuple(place)]
        whole = isinstance(number, int) or after.dtype.kind != "f"
        if not np.isfinite(kept) or (whole and int(kept) != number):
            path = "$" + "".join(f"[{index}]" for index in place)
            raise BadInput(f"{number!r} is no {after.dtype}, and would silently be another number - at `{path}`")
