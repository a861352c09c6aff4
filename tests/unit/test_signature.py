"""How input becomes what an annotation says, and what is refused because something would be lost."""

import dataclasses
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from algomesh import content
from algomesh.content import Content
from algomesh.errors import BadInput
from algomesh.signature import read_signature


class Tree(msgspec.Struct):
    name: str
    children: "list[Tree]" = []


class Scene(msgspec.Struct, rename="camel"):
    frame_rate: float
    pixels: np.ndarray
    note: str = "none"


@dataclasses.dataclass
class Pair:
    image: np.ndarray
    raw: bytes


def read(wanted: Any, given: Any) -> Any:
    def algorithm(value: Any) -> None:
        """Takes what is wanted."""

    algorithm.__annotations__["value"] = wanted
    return read_signature(algorithm).read(*(given if isinstance(given, Content) else content.encode(given)))


def together(*values: Any, **named: Any) -> Content:
    return content.join([content.encode(value) for value in values or named.values()], list(named))


def test_a_list_of_numbers_becomes_an_array() -> None:
    assert read(np.ndarray, [[1.5, 2], [3, 4]]).dtype == np.float32
    assert read(np.ndarray, [1, 2]).dtype == np.int64
    assert read(np.ndarray, 2.5).shape == ()
    assert read(np.ndarray, []).dtype == np.float32


def test_the_annotated_dtype_is_the_one_that_comes() -> None:
    assert read(npt.NDArray[np.float32], [1, 2]).dtype == np.float32
    assert read(npt.NDArray[np.float64], [0.1]).tolist() == [0.1]
    assert read(npt.NDArray[np.uint8], [0, 255]).dtype == np.uint8
    assert read(npt.NDArray[np.float64], np.ones(2, np.float32)).dtype == np.float64
    assert read(npt.NDArray[np.floating[Any]], np.ones(2, np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    ("wanted", "given", "said"),
    [
        (np.ndarray, [0.5, 2**24 + 1], r"16777217 is no float32.*`\$\[1\]`"),
        (np.ndarray, [[0.5, 1], [2, 2**60 + 1]], r"`\$\[1\]\[1\]`"),
        (np.ndarray, [1e300], r"1e\+300 is no float32"),
        (np.ndarray, [2**70], "64 bits"),
        (np.ndarray, ["a"], "more than numbers"),
        (np.ndarray, [[1, 2], [3]], "one length"),
        (np.ndarray, {"a": 1}, "an array is wanted"),
        (npt.NDArray[np.float32], [2**24 + 1], r"`\$\[0\]`"),
        (npt.NDArray[np.uint8], [1, 256], r"256 is no uint8.*`\$\[1\]`"),
        (npt.NDArray[np.uint8], [1.5], r"1.5 is no uint8"),
        (npt.NDArray[np.float32], np.ones(2), "float32 is wanted, one of float64 came"),
        (npt.NDArray[np.uint8], np.ones(2, np.int64), "would lose"),
    ],
)
def test_what_an_array_would_lose_is_refused_with_its_path(wanted: Any, given: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read(wanted, given)


def test_fractions_and_round_numbers_are_no_loss() -> None:
    kept = read(np.ndarray, [0.1, 2**24, 123456789.5, 1e10])

    assert kept.dtype == np.float32
    assert kept[1] == 2**24


def test_text_becomes_bytes_and_bytes_no_text() -> None:
    assert read(bytes, "naïve") == "naïve".encode()
    with pytest.raises(BadInput, match="text is wanted, binary came"):
        read(str, b"abc")
    with pytest.raises(BadInput, match="not UTF-8: byte 1 is 0xff"):
        read(str, Content("text", "", b"a\xff"))


def test_arrays_inside_json_are_read_too() -> None:
    scene = read(Scene, {"frameRate": 24, "pixels": [[0.5, 1]]})

    assert scene.pixels.dtype == np.float32
    assert [rows.shape for rows in read(list[np.ndarray], [[1, 2], [3]])] == [(2,), (1,)]
    with pytest.raises(BadInput, match=r"16777217.*pixels"):
        read(Scene, {"frameRate": 24, "pixels": [0.5, 2**24 + 1]})


def test_a_type_that_holds_itself_is_read() -> None:
    assert read(Tree, {"name": "a", "children": [{"name": "b"}]}).children[0].name == "b"


def test_a_bundle_is_read_part_by_part() -> None:
    image = np.ones((2, 2), np.uint8)

    parts = read(list[np.ndarray], together(image, [0.5, 1]))
    mapping = read(dict[str, bytes], together(a=b"\xff", b="text"))
    scene = read(Scene, together(frameRate=24, pixels=image, extra=1))
    pair = read(Pair, together(image=image, raw="abc"))

    assert [part.dtype for part in parts] == [np.uint8, np.float32]
    assert mapping == {"a": b"\xff", "b": b"text"}
    assert (scene.frame_rate, scene.note) == (24, "none")
    assert np.array_equal(scene.pixels, image)
    assert (pair.raw, pair.image.shape) == (b"abc", (2, 2))
    assert read(list[Any], together(image, "a"))[1] == "a"
    assert read(dict[str, Any], together(x=image, y=[1]))["y"] == [1]


def test_a_bundle_of_structs_keeps_them() -> None:
    class Box(msgspec.Struct):
        tree: Tree
        raw: bytes

    box = read(Box, together(tree={"name": "root"}, raw=b"\x00"))

    assert box == Box(Tree("root"), b"\x00")


@pytest.mark.parametrize(
    ("wanted", "given", "said"),
    [
        (list[np.ndarray], together(np.ones(2), "text"), r"an array is wanted, text came.*`\$\[1\]`"),
        (dict[str, str], together(x="a", y=b"b"), r"text is wanted, binary came.*`\$\.y`"),
        (Scene, together(frameRate=24, note=b"x"), r"\$\.note"),
        (Scene, together(frameRate=24, other=np.ones(1)), "missing required field `pixels`"),
        (Scene, together(np.ones(1)), "Expected `object`"),
        (str, together(b"a"), "text is wanted, bundle came"),
        (np.ndarray, together(np.ones(2), np.ones(3)), "differ.*`\\$\\[1\\]`"),
        (np.ndarray, together(np.ones(2), b"b"), "an array is wanted, bytes came"),
        (np.ndarray, together(x=np.ones(2)), "an array is wanted, bundle came"),
        (list[int], Content("bundle", "", b"\x01"), "no bundle"),
    ],
)
def test_a_part_that_does_not_fit_is_named(wanted: Any, given: Content, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read(wanted, given)


def test_arrays_of_one_shape_become_one_array() -> None:
    assert read(np.ndarray, together(np.ones(2), np.zeros(2))).tolist() == [[1, 1], [0, 0]]
