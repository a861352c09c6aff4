# /// script
# requires-python = ">=3.11"
# dependencies = ["algomesh>=0.1"]
# ///
"""Small algorithms that show what the mesh does: one file is a project too, and may hold several algorithms.

Acceptance tests of other clients call these by name, so what they answer is a contract.
"""

import time
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from algomesh import AlgorithmError, algorithm

Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]


@algorithm("demo/clean", version="0.1.0")
def clean(text: str) -> str:
    """Lower-case a text and reduce white space to single spaces."""
    return " ".join(text.lower().split())


@algorithm("demo/tokenize", version="0.1.0")
def tokenize(text: str) -> list[str]:
    """Split a text at white space."""
    return text.split()


@algorithm("demo/count", version="0.1.0")
def count(items: list[Any]) -> int:
    """Count the items of a list."""
    return len(items)


@algorithm("demo/echo", version="0.1.0")
def echo(value: Any) -> Any:
    """Return what came, in the kind in which it came."""
    return value


@algorithm("demo/fail", version="0.1.0")
def fail(value: Any) -> None:
    """Fail, whatever comes, with an error that says so."""
    raise AlgorithmError("demo failure", error_type="InputError")


@algorithm("demo/slow", version="0.1.0")
def slow(seconds: Seconds) -> str:
    """Sleep for so many seconds."""
    time.sleep(seconds)
    return "slept"


@algorithm("demo/stream", version="0.1.0")
def stream(text: str) -> Iterator[str]:
    """Split a text at single spaces, and give piece by piece."""
    yield from text.split(" ")
