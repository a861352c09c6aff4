"""`Batch`: how single calls from different callers are run together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from algomesh.errors import BadOutput

MOST_TOGETHER: Final = 1024
_LONGEST_MS: Final = 1000.0


@dataclass(frozen=True)
class Batch:
    """Run up to `max` calls together; the code takes a list of inputs and returns a list of as many outputs.

    A caller still sends one input and gets one output. Calls gather while a batch runs. An instance that is free
    waits for others only while that has paid lately, for `wait_ms` milliseconds at most, and never for one caller at
    a time. A batch that raises, or returns another number of outputs, is run again one by one, so that one bad input
    fails alone: code with effects outside must bear that.

    Inside a batch of several, `current()` is nobody's in particular: `run` is that of the first with how many
    more came along (`…+3`), callers are empty, `remaining_s` is the shortest of all, `cancelled` is set when nobody
    wants an answer any more, and `client` may not call.

    Raises ValueError.
    """

    max: int = 32
    wait_ms: float = 4.0

    def __post_init__(self) -> None:
        if isinstance(self.max, bool) or not isinstance(self.max, int) or not 1 <= self.max <= MOST_TOGETHER:
            raise ValueError(f"max={self.max!r} is not a whole number from 1 to {MOST_TOGETHER}")
        if not 0 <= self.wait_ms <= _LONGEST_MS:
            raise ValueError(f"wait_ms={self.wait_ms!r} is not a number of milliseconds from 0 to {_LONGEST_MS:g}")


def batch_of(value: Batch | int | None) -> Batch | None:
    """What the option says; a number is how many run together. Raises TypeError, ValueError."""
    if value is None or isinstance(value, Batch):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Batch(value)
    raise TypeError(f"batch={value!r} is neither a Batch nor a number; write batch=Batch(max=32, wait_ms=4)")


def check_outputs(outputs: Any, wanted: int) -> Sequence[Any]:
    """What a batch returned, when it is one output for each of `wanted` inputs. Raises BadOutput."""
    what = type(outputs).__name__
    if isinstance(outputs, str | bytes | dict) or not (hasattr(outputs, "__len__") and hasattr(outputs, "__iter__")):
        raise BadOutput(f"a batch of {wanted} returned {what}; return a list with one output for each input")
    if len(outputs) != wanted:
        raise BadOutput(f"a batch of {wanted} returned {len(outputs)} outputs; return one for each input, in order")
    return list(outputs)
