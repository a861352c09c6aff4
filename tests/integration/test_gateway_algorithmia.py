"""`/v1/algo` in the shapes that Algorithmia's clients send and expect."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from algomesh import content
from algomesh.content import Content
from tests.conditions import until
from tests.integration.gateway_fixtures import ADMIN_KEY, Served, answering, keep_silent, served

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def gateway(tmp_path: Path, postgres: str) -> AsyncIterator[Served]:
    async with served(tmp_path, postgres, detached=2) as there:
        yield there


@pytest.mark.parametrize(
    ("value", "content_type"),
    [("naïve ☃\n", "text"), ("", "text"), ({"é": [1, 2.5, None]}, "json"), (None, "json"), (True, "json")],
)
async def test_a_value_comes_back_as_result(gateway: Served, value: Any, content_type: str) -> None:
    status, body, _ = await gateway.post("/v1/algo/demo/echo", value)

    assert status == 200
    assert body["result"] == value
    assert body["metadata"]["content_type"] == content_type
    assert body["metadata"]["duration"] >= 0
    assert body["metadata"]["run_id"] == gateway.echo.calls[-1].run


async def test_bytes_come_back_in_base64(gateway: Served) -> None:
    blob = bytes(range(256)) * 4096

    _, body, _ = await gateway.post("/v1/algo/demo/echo", blob)

    assert base64.b64decode(body["result"]) == blob
    assert body["metadata"]["content_type"] == "binary"


async def test_an_array_comes_back_as_its_memory_and_its_description(gateway: Served) -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    await gateway.stand_in("demo/array/1.0.0", answering(content.encode(array)), "test-9")

    _, body, _ = await gateway.post("/v1/algo/demo/array", None)

    assert base64.b64decode(body["result"]) == array.tobytes()
    assert body["metadata"]["tensor"] == "numpy/int32/2,3"


@pytest.mark.parametrize("authorization", ["{}", "Simple {}", "simple {}", "Bearer {}"])
async def test_the_key_is_taken_as_clients_send_it(gateway: Served, authorization: str) -> None:
    status, _, _ = await gateway.post(
        "/v1/algo/demo/echo", key=None, headers={"Authorization": authorization.format(ADMIN_KEY)}
    )

    assert status == 200


@pytest.mark.parametrize("path", ["demo/echo/0.1.0", "demo/echo/0.1", "demo/echo/0", "demo/echo/latest", "Demo/Echo"])
async def test_every_form_of_reference_resolves(gateway: Served, path: str) -> None:
    status, body, _ = await gateway.post(f"/v1/algo/{path}?timeout=60&stdout=False")

    assert (status, body["result"], body["metadata"]["version"]) == (200, "x", "0.1.0")


async def test_a_failed_run_is_a_200_with_an_error_that_the_real_client_raises(gateway: Served) -> None:
    status, body, _ = await gateway.post("/v1/algo/demo/fail")

    assert status == 200
    assert "demo failure" in body["error"]["message"]
    assert body["error"]["error_type"] == "InputError"
    assert "Traceback" not in json.dumps(body)


async def test_a_timeout_is_a_200_that_names_the_time(gateway: Served) -> None:
    status, body, _ = await gateway.post("/v1/algo/demo/slow?timeout=1")

    assert status == 200
    assert "time" in body["error"]["message"]
    assert body["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    ("path", "key", "status", "code"),
    [
        ("demo/echo/99.99.99", ADMIN_KEY, 404, "unknown_version"),
        ("demo/nothing_like_it", ADMIN_KEY, 404, "unknown_algorithm"),
        ("demo/echo", "wrong-" + ADMIN_KEY, 401, "unauthenticated"),
        ("demo/echo", None, 401, "unauthenticated"),
        ("demo/echo?timeout=soon", ADMIN_KEY, 400, "bad_input"),
        ("demo/echo?timeout=nan", ADMIN_KEY, 400, "bad_input"),
        ("demo/echo?timeout=-1", ADMIN_KEY, 400, "bad_input"),
        ("demo/echo?output=xml", ADMIN_KEY, 400, "bad_input"),
        ("a..b/c>", ADMIN_KEY, 400, "bad_reference"),
        ("demo", ADMIN_KEY, 400, "bad_reference"),
        ("demo/echo/1/2", ADMIN_KEY, 400, "bad_reference"),
    ],
)
async def test_what_never_became_a_run_has_its_own_status(
    gateway: Served, path: str, key: str | None, status: int, code: str
) -> None:
    answered, body, _ = await gateway.post(f"/v1/algo/{path}", key=key)

    assert (answered, body["error"]["code"]) == (status, code)
    assert body["error"]["message"]


async def test_a_key_without_the_scope_is_refused(gateway: Served) -> None:
    key = await gateway.mesh.key("call:text/*")

    status, body, _ = await gateway.post("/v1/algo/demo/echo", key=key)
    void_status, _, _ = await gateway.post("/v1/algo/demo/echo?output=void", key=key)

    assert (status, void_status) == (403, 403)
    assert body["error"]["code"] == "permission_denied"


async def test_raw_output_is_the_result_itself(gateway: Served) -> None:
    text_status, text, text_answer = await gateway.post("/v1/algo/demo/echo?output=raw", "plain")
    _, document, _ = await gateway.post("/v1/algo/demo/echo?output=raw", {"a": [1]})

    assert (text_status, text, text_answer.content_type) == (200, b"plain", "text/plain")
    assert document == {"a": [1]}


async def test_raw_output_of_a_failed_run_is_no_result(gateway: Served) -> None:
    status, body, _ = await gateway.post("/v1/algo/demo/fail?output=raw")

    assert status == 400
    assert "demo failure" in body["error"]["message"]


async def test_void_output_is_answered_at_once_and_the_run_goes_on(gateway: Served) -> None:
    status, body, _ = await gateway.post("/v1/algo/demo/slow?output=void")

    assert (status, body["async"]) == (200, "void")
    assert gateway.slow.calls[-1].run == body["request_id"]
    assert not gateway.slow.cancels


async def test_detached_runs_are_bounded(gateway: Served) -> None:
    for _ in range(2):
        await gateway.post("/v1/algo/demo/slow?output=void")

    status, body, _ = await gateway.post("/v1/algo/demo/slow?output=void")

    assert (status, body["error"]["code"]) == (429, "overloaded")


async def test_detached_runs_are_cancelled_when_the_gateway_stops(tmp_path: Path, postgres: str) -> None:
    async with served(tmp_path, postgres) as gateway:
        slow = await gateway.stand_in("demo/later/1.0.0", keep_silent, "test-9")
        _, body, _ = await gateway.post("/v1/algo/demo/later?output=void")

        await gateway.stop_gateway()

        await until(lambda: slow.cancels)
        assert slow.cancels[0].run == body["request_id"]


async def test_an_answer_that_is_not_what_it_says_is_bad_output(gateway: Served) -> None:
    liar = await gateway.stand_in("demo/liar/1.0.0", answering(Content("json", "", b'{"a":')), "test-9")

    _, as_json, _ = await gateway.post("/v1/algo/demo/liar")
    liar.behave = answering(Content("text", "", b"\xff\xfe"))
    _, as_text, _ = await gateway.post("/v1/algo/demo/liar")

    assert as_json["error"]["code"] == as_text["error"]["code"] == "bad_output"


async def test_callers_of_both_faces_run_side_by_side(gateway: Served) -> None:
    answers = await asyncio.gather(
        *[gateway.post("/v1/algo/demo/echo", number) for number in range(20)],
        *[gateway.post("/mesh/v1/call/demo/echo", number) for number in range(20)],
    )

    results = [body["result"] if isinstance(body, dict) else body for _, body, _ in answers]
    assert results == [*range(20), *range(20)]
