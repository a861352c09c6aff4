"""The short notation of types, and what fits what."""

import datetime
import decimal
import enum
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from algomesh.kinds import either, fits, notation


class Point(msgspec.Struct):
    x: float


class Row(msgspec.Struct, array_like=True):
    x: float


class Pair(NamedTuple):
    x: int
    y: int


class Form(TypedDict):
    x: int


class Size(enum.IntEnum):
    SMALL = 1


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (str, "text"),
        (bytes, "binary"),
        (np.ndarray, "tensor"),
        (npt.NDArray[np.float32], "tensor"),
        (int, "json:number"),
        (bool, "json:boolean"),
        (None, "json:null"),
        (dict[str, int], "json:object"),
        (Mapping[str, int], "json:object"),
        (Point, "json:object"),
        (Form, "json:object"),
        (Row, "json:array"),
        (Pair, "json:array"),
        (list, "json:array"),
        (list[str], "json:array[text]"),
        (Sequence[list[np.ndarray]], "json:array[json:array[tensor]]"),
        (list[int | str], "json:array[json:number|text]"),
        (str | None, "text|json:null"),
        (Literal["a", "b"], "text"),
        (Size, "json"),
        (datetime.datetime, "text"),
        (decimal.Decimal, "text|json:number"),
        (Annotated[int, msgspec.Meta(gt=0)], "json:number"),
        (Any, ""),
        (object, ""),
        (str | Any, ""),
        (list[Any], "json:array"),
        (Iterator[str], ""),
        (pytest.Item, ""),
    ],
    ids=str,
)
def test_a_type_has_a_kind(wanted: Any, said: str) -> None:
    assert notation(wanted) == said


def test_what_is_yielded_arrives_as_a_list() -> None:
    assert notation(Iterator[str], given=True) == "json:array[text]"
    assert notation(AsyncIterator[Any], given=True) == "json:array"


@pytest.mark.parametrize(
    ("gives", "takes"),
    [
        ("", "text"),
        ("tensor", ""),
        ("text", "text"),
        ("text", "binary"),
        ("json:array", "tensor"),
        ("json:array[json:array[json:number]]", "tensor"),
        ("json:number", "tensor"),
        ("json:array[text]", "json:array"),
        ("json:array", "json:array[text]"),
        ("text|json:null", "text"),
        ("json:object", "text|json:object"),
        ("json:array[text|json:null]", "json:array[json:number|text]"),
        ("json:object", "json"),
        ("json", "text"),
    ],
)
def test_what_fits(gives: str, takes: str) -> None:
    assert fits(gives, takes)


@pytest.mark.parametrize(
    ("gives", "takes"),
    [
        ("binary", "text"),
        ("text", "tensor"),
        ("text", "json:number"),
        ("tensor", "json:array"),
        ("json:array[text]", "tensor"),
        ("json:array[text]", "json:array[json:number]"),
        ("json:array[json:array[text]]", "json:array[text]"),
        ("json:object", "json:array"),
        ("json:number", "text"),
        ("text|json:null", "tensor"),
        ("json", "binary"),
    ],
)
def test_what_does_not_fit(gives: str, takes: str) -> None:
    assert not fits(gives, takes)


def test_too_many_kinds_are_unknown() -> None:
    assert either(["text", "tensor", "text"]) == "text|tensor"
    assert either(["text", ""]) == ""
    assert either([f"json:array[{'x' * number}]" for number in range(50)]) == ""
