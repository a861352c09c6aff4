"""What streams: generators that give parts, and annotations that take parts as they come."""

import collections.abc
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any, Final

_TAKEN: Final = frozenset({collections.abc.Iterator, collections.abc.Iterable})
_TAKEN_ASYNC: Final = frozenset({collections.abc.AsyncIterator, collections.abc.AsyncIterable})


def yields(function: Callable[..., Any]) -> bool:
    """Whether what it returns comes in parts: a generator, asynchronous or not."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def item_taken(annotation: Any) -> Any:
    """What `Iterator[X]` and its like take, X (Any without one); None for an annotation that takes no parts."""
    origin = typing.get_origin(annotation) or annotation
    if origin not in _TAKEN and origin not in _TAKEN_ASYNC:
        return None
    arguments = typing.get_args(annotation)
    return arguments[0] if arguments else Any


def is_async(annotation: Any) -> bool:
    """Whether it takes an asynchronous iterator."""
    return (typing.get_origin(annotation) or annotation) in _TAKEN_ASYNC


async def async_iterator(items: Iterator[Any]) -> collections.abc.AsyncIterator[Any]:
    """What is there already, for code that wants to wait for it."""
    for item in items:
        yield item
