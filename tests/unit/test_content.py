"""Values as they travel."""

import dataclasses
import threading
from typing import Any

import msgspec
import numpy as np
import pytest

from algomesh import content
from algomesh.errors import BadInput, BadOutput


@dataclasses.dataclass
class Point:
    x: float
    y: float


class Box(msgspec.Struct):
    inner: Point


def round_trip(value: Any) -> Any:
    return content.decode(*content.encode(value))


@pytest.mark.parametrize(
    "value", ["", "naïve ☃\n", b"", bytes(range(256)), None, True, 42, 1.5, [1, [2]], {"é": "日本"}]
)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    back = round_trip(value)

    assert back == value
    assert type(back) is type(value)


def test_content_types_follow_the_value() -> None:
    kinds = [content.encode(value).content_type for value in ("t", b"b", bytearray(b"b"), {"j": 1}, np.zeros(2))]

    assert kinds == ["text", "binary", "binary", "json", "tensor"]


def test_dataclasses_and_structs_are_json() -> None:
    assert round_trip(Box(Point(1, 2))) == {"inner": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array(7, dtype=np.int64),
        np.zeros((0, 4), dtype=np.uint8),
        np.array([True, False]),
        np.arange(8, dtype=">i4"),
        np.arange(12).reshape(3, 4)[:, ::2],
        np.array([b"ab", b"c"]),
    ],
    ids=["float32", "scalar", "empty", "bool", "big-endian", "strided", "bytes"],
)
def test_arrays_keep_shape_and_values(array: np.ndarray[Any, Any]) -> None:
    back = round_trip(array)

    assert back.shape == array.shape
    assert np.array_equal(back, array)


def test_an_array_is_read_without_a_copy() -> None:
    payload = content.encode(np.arange(1000, dtype=np.float64)).payload

    back = content.decode("tensor", "numpy/float64/1000", payload)

    assert np.shares_memory(back, np.frombuffer(payload, dtype=np.float64))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (threading.Lock(), "return text"),
        ({"a": [1.0, float("nan")]}, r"\$\.a\[1\] is nan"),
        (Point(float("inf"), 1), r"\$\.x is inf"),
        ([None, float("-inf")], r"\$\[1\] is -inf"),
        ("\ud800", "surrogate"),
        (["\ud800"], "surrogate"),
        (np.array([object()]), "dtype object"),
        ({1j}, "complex"),
    ],
)
def test_what_cannot_travel_is_refused_with_its_place(value: Any, said: str) -> None:
    with pytest.raises(BadOutput, match=said):
        content.encode(value)


def test_a_value_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)

    with pytest.raises(BadOutput, match="nested too deeply"):
        content.encode(loop)


@pytest.mark.parametrize(
    ("content_type", "detail", "payload"),
    [
        ("json", "", b"{"),
        ("json", "", b"[" * 100_000),
        ("text", "", b"\xff"),
        ("tensor", "numpy/float32/3", b"12"),
        ("tensor", "numpy/object/1", b"12345678"),
        ("tensor", "nonsense", b""),
        ("tensor", "numpy/float32/-1", b"1234"),
        ("picture", "", b""),
    ],
)
def test_damaged_content_is_refused(content_type: str, detail: str, payload: bytes) -> None:
    with pytest.raises(BadInput):
        content.decode(content_type, detail, payload)


def together(*values: Any, **named: Any) -> content.Content:
    return content.join([content.encode(value) for value in values or named.values()], list(named))


def test_texts_and_json_join_to_json_without_being_decoded() -> None:
    mixed = content.join([content.Content("json", "", b"{ }"), content.encode('say "hi" ☃')])

    assert mixed.payload == '[{ },"say \\"hi\\" ☃"]'.encode()
    assert content.decode(*together(x=1, y="a")) == {"x": 1, "y": "a"}
    assert content.decode(*content.join([])) == []


def test_an_array_among_the_parts_makes_a_bundle() -> None:
    image = np.arange(4, dtype=np.uint8)

    inner = together(b"x", "y")
    whole = content.join([*(content.encode(value) for value in ("text", b"\xff", image, [1])), inner])
    back = content.decode(*whole)
    named = content.decode(*together(image=image, text="t"))

    assert whole.content_type == "bundle"
    assert (back[0], back[1], back[3], back[4]) == ("text", b"\xff", [1], [b"x", "y"])
    assert np.array_equal(back[2], image)
    assert np.shares_memory(back[2], np.frombuffer(whole.payload, np.uint8))
    assert (list(named), named["text"]) == (["image", "text"], "t")


def test_a_list_of_arrays_travels_as_a_bundle() -> None:
    back = round_trip([np.ones(2), 1, "a", b"\xff"])
    named = round_trip({"x": np.ones(2), "y": None})

    assert np.array_equal(back[0], np.ones(2))
    assert back[1:] == [1, "a", b"\xff"]
    assert np.array_equal(named["x"], np.ones(2))


@pytest.mark.parametrize(
    ("given", "items"),
    [
        ([1, [2, 3], "ä", None], [1, [2, 3], "ä", None]),
        ([], []),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (np.arange(3), [0, 1, 2]),
        (np.zeros((0, 3)), []),
        (np.zeros((2, 0)), [[], []]),
    ],
    ids=repr,
)
def test_a_list_comes_apart_into_its_items(given: Any, items: list[Any]) -> None:
    parts = [content.decode(*part) for part in content.split(content.encode(given))]

    assert [part.tolist() if isinstance(part, np.ndarray) else part for part in parts] == items


def test_the_parts_of_a_bundle_are_its_items() -> None:
    assert [part.content_type for part in content.split(together(b"a", "b"))] == ["binary", "text"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (content.encode("text"), "a list is wanted.*text came"),
        (content.encode({"a": 1}), "a list is wanted"),
        (content.encode(np.array(1)), "without dimensions"),
        (together(x=b"a"), "a mapping came"),
        (content.Content("json", "", b"[1,"), "a list is wanted"),
        (content.Content("tensor", "numpy/uint8/3", b"12"), "not a tensor"),
        (content.Content("tensor", "numpy/uint8/9999999999,0", b""), "not a tensor"),
        (content.Content("tensor", "numpy/uint8/x", b""), "not a tensor"),
        (content.Content("bundle", "", b"\xc0"), "no bundle"),
    ],
)
def test_what_is_no_list_does_not_come_apart(given: content.Content, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        content.split(given)


def test_a_bundle_within_bundles_without_end_is_refused() -> None:
    whole = together(b"x")
    for _ in range(2_000):
        whole = content.join([whole])

    with pytest.raises(BadInput, match="nested too deeply"):
        content.decode(*whole)
