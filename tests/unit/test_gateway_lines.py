"""The parts of a stream as text, and as the SDK reads them again."""

import json
from typing import Any

import numpy as np
import pytest

from algomesh import content, errors
from algomesh.content import Content
from algomesh.http_wire import read_line
from algomesh.response import Metadata
from algomesh_services.gateway.answers import described
from algomesh_services.gateway.event_lines import last_line, part_line
from algomesh_services.gateway.plain import as_plain

METADATA = Metadata(content_type="json", duration=0.5, run_id="r", version="1.0.0", algorithm="a/b")


@pytest.mark.parametrize("value", ["a\nb ☃", {"a": [1, None]}, None, b"\x00\xff", [1, 2]])
async def test_a_part_is_one_line_and_comes_back(value: object) -> None:
    line = await part_line("ndjson", 0, content.encode(value))

    assert line.count(b"\n") == 1
    assert content.decode(*read_line(line).as_content()) == value


async def test_an_array_and_a_bundle_come_back_where_the_client_knows_them() -> None:
    values: list[Any] = [np.arange(6, dtype=np.float32).reshape(2, 3), [np.arange(3), "a"]]
    for value in values:
        line = await part_line("ndjson", 0, content.encode(value), keeps_bundles=True)
        found = content.decode(*read_line(line).as_content())

        assert type(found) is type(value)
        assert np.array_equal(found[0], value[0])


async def test_json_over_several_lines_becomes_one() -> None:
    line = await part_line("sse", 7, Content("json", "", b'{"a":\n 1,\r\n "b": "x"}'))

    assert line == b'event: part\nid: 7\ndata: {"part":{"a":1,"b":"x"}}\n\n'


@pytest.mark.parametrize(
    "part", [Content("json", "", b"{"), Content("text", "", b"\xff"), Content("tensor", "\n", b"")]
)
async def test_a_part_that_is_not_what_it_says_is_refused(part: Content) -> None:
    with pytest.raises(errors.BadOutput):
        await part_line("sse", 0, part)


def test_the_end_and_the_error_come_back() -> None:
    error = errors.AlgorithmError("no", stage="a/b/1.0.0", error_type="KeyError")
    error.branch = ["branch 1", "item 3"]

    end = read_line(last_line("ndjson", "end", METADATA)).end
    refusal = read_line(last_line("ndjson", "error", described(error))).error

    assert end == METADATA
    assert refusal is not None
    back = refusal.as_error()
    assert type(back) is errors.AlgorithmError
    assert (str(back), back.error_type) == (str(error), "KeyError")
    assert last_line("sse", "end", METADATA).startswith(b"event: end\ndata: {")


@pytest.mark.parametrize("line", [b"", b"<html>", b"[1]", b'{"part": "a", "content_type": "rope"}', b"\xff"])
def test_a_line_that_is_not_the_meshs_is_an_error(line: bytes) -> None:
    with pytest.raises(errors.Unreachable):
        read_line(line)


async def test_a_bundle_becomes_json_with_lists_and_base64() -> None:
    bundle = content.join(
        [content.encode(np.arange(3)), content.encode(b"\x00\x01"), content.encode("t")], ["a", "b", "c"]
    )
    nested = content.join([bundle, content.encode(7)])

    plain = await as_plain(nested)

    assert plain.content_type == "json"
    assert json.loads(bytes(plain.payload)) == [{"a": [0, 1, 2], "b": "AAE=", "c": "t"}, 7]


async def test_what_json_cannot_say_is_told_with_what_to_ask_for() -> None:
    bundle = content.join([content.encode(np.array([1.0, np.nan])), content.encode(1)])

    with pytest.raises(errors.BadOutput, match="Accept"):
        await as_plain(bundle)
