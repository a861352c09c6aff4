"""Pipelines over HTTP: as a form by hand, by the SDK, and what is refused."""

import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio

import algomesh
from algomesh import content, errors
from tests.integration.stream_fixtures import BEARER, KEY, form_of, streaming_mesh
from tests.integration.up_fixtures import Up

pytestmark = pytest.mark.integration

PATH = "/mesh/v1/pipe"
SHOUT = algomesh.stage("s/shout")
BUNDLE = "application/vnd.algomesh.bundle"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with streaming_mesh(tmp_path_factory.mktemp("mesh")) as up:
        yield up


@pytest.fixture(params=["nats", "gateway"])
def client(up: Up, request: pytest.FixtureRequest) -> Iterator[algomesh.Client]:
    with algomesh.client(KEY, up.said[request.param]) as client:
        yield client


@pytest_asyncio.fixture
async def http(up: Up) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(up.said["gateway"], headers=BEARER) as session:
        yield session


async def post(
    http: aiohttp.ClientSession, fields: dict[str, tuple[bytes, str]], **headers: str
) -> tuple[int, Any, aiohttp.ClientResponse]:
    async with http.post(PATH, data=form_of(fields), headers=headers) as answer:
        is_json = answer.content_type == "application/json"
        return answer.status, await (answer.json() if is_json else answer.read()), answer


def fields(
    pipeline: algomesh.Pipeline | bytes, value: bytes = b"a", media: str = "text/plain"
) -> dict[str, tuple[bytes, str]]:
    data = pipeline if isinstance(pipeline, bytes) else pipeline.to_json()
    return {"pipeline": (data, "application/json"), "input": (value, media)}


@pytest.mark.parametrize(
    ("pipeline", "value", "wanted"),
    [
        (SHOUT | "s/size", "abc", 3),
        (SHOUT & "s/size", "abc", ["ABC", 3]),
        (algomesh.all(loud=SHOUT, size="s/size"), "abc", {"loud": "ABC", "size": 3}),
        (SHOUT.each(), ["a", "b"], ["A", "B"]),
        (SHOUT.options(timeout=5), "a", "A"),
        (algomesh.stage("s/double").each(in_flight=2) | "s/total", list(range(50)), 2 * sum(range(50))),
    ],
)
def test_pipelines_run_alike_by_every_way(
    client: algomesh.Client, pipeline: algomesh.Pipeline, value: Any, wanted: Any
) -> None:
    response = client.algo(pipeline).pipe(value)

    assert response.result == wanted
    assert response.metadata.run_id
    assert response.metadata.version == "1.0.0"


def test_arrays_in_a_fan_out_stay_arrays(client: algomesh.Client) -> None:
    result = client.algo(algomesh.all(codes="s/codes", loud=SHOUT)).pipe("ab").result

    assert result["loud"] == "AB"
    assert result["codes"].dtype == np.float32
    assert np.array_equal(result["codes"], [97, 98])


def test_an_error_names_its_stage_and_branch(client: algomesh.Client) -> None:
    with pytest.raises(errors.AlgorithmError, match="it is bad") as caught:
        client.algo(algomesh.all(x="s/size", y=SHOUT)).pipe("bad")

    assert caught.value.branch == ["branch 'y'"]
    assert caught.value.stage == "s/shout/1.0.0"


async def test_a_form_brings_pipeline_and_input(http: aiohttp.ClientSession) -> None:
    status, body, answer = await post(http, fields(SHOUT | "s/size", "héé".encode()))

    assert (status, body) == (200, 3)
    assert answer.headers["Algomesh-Algorithm"] == "s/size"
    assert len(answer.headers["Algomesh-Run"]) == 32


async def test_a_bundle_is_json_unless_its_own_type_is_asked_for(http: aiohttp.ClientSession) -> None:
    both = fields(algomesh.all(codes="s/codes", size="s/size"), b"ab")

    _, plain, answer = await post(http, both)
    _, packed, answered = await post(http, both, Accept=f"{BUNDLE}, */*")

    assert (answer.content_type, plain) == ("application/json", {"codes": [97.0, 98.0], "size": 2})
    assert answered.content_type == BUNDLE
    assert content.decode("bundle", "", packed)["size"] == 2


async def test_an_array_comes_as_a_part_with_its_own_header(http: aiohttp.ClientSession) -> None:
    data = np.arange(4, dtype=np.int64)
    form = form_of(fields(algomesh.stage("s/add"), data.tobytes(), "application/x-algomesh-tensor"))
    list(form)[1][0].headers["Algomesh-Tensor"] = "numpy/int64/4"

    async with http.post(PATH, data=form) as answer:
        assert (await answer.json(), answer.status) == (6, 200)


async def test_an_error_over_http_has_stage_and_branch(http: aiohttp.ClientSession) -> None:
    status, body, _ = await post(http, fields(SHOUT.each(), b'["a","bad"]', "application/json"))

    assert status == 422
    assert body["code"] == "algorithm_error"
    assert (body["stage"], body["branch"]) == ("s/shout/1.0.0", ["item 1"])


DEEP = '{"kind":"each","of":' * 5_000 + '{"kind":"stage","reference":"s/shout"}' + "}" * 5_000
LONG = {"kind": "chain", "stages": [{"kind": "stage", "reference": "s/shout"}] * 4_001}


@pytest.mark.parametrize(
    ("pipeline", "says"),
    [
        ("", "not a pipeline"),
        ("text/clean", "not a pipeline"),
        ('{"kind":"rope"}', "rope"),
        ('{"kind":"chain","stages":[]}', "`$`"),
        ('{"kind":"chain","stages":[{"kind":"stage","reference":"nothing"}]}', "`$.stages[0]`"),
        ('{"kind":"all","branches":[{"kind":"stage","reference":"a/b","timeout_s":-1}]}', "`$.branches[0]`"),
        ('{"kind":"stage","reference":"a/b","shape":"round"}', "shape"),
        ('{"kind":"each","of":{"kind":"stage","reference":"a/b"},"in_flight":5000}', "in_flight"),
        (json.dumps(LONG), "4,000 stages"),
        (DEEP, ""),
    ],
)
async def test_what_is_no_pipeline_is_a_400_that_says_where(
    http: aiohttp.ClientSession, pipeline: str, says: str
) -> None:
    status, body, _ = await post(http, fields(pipeline.encode()))

    assert (status, body["code"] in ("bad_input", "bad_reference")) == (400, True)
    assert says in body["message"]


async def test_a_long_pipeline_within_the_bounds_runs(up: Up) -> None:
    async with algomesh.connect(KEY, up.said["gateway"]) as mesh:
        pipeline: algomesh.Pipeline = SHOUT
        for _ in range(99):
            pipeline = pipeline | SHOUT
        assert (await mesh.algo(pipeline).pipe("a")).result == "A"


async def test_what_is_no_form_of_the_two_parts_is_a_400(http: aiohttp.ClientSession) -> None:
    both = fields(SHOUT)

    for parts, says in (
        ({"pipeline": both["pipeline"]}, "'pipeline'"),
        ({"input": both["input"]}, "'input'"),
        ({**both, "extra": (b"x", "text/plain")}, "'extra'"),
    ):
        status, body, _ = await post(http, parts)
        assert (status, body["code"]) == (400, "bad_input")
        assert says in body["message"]
    async with http.post(PATH, data=SHOUT.to_json(), headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 400
        assert "-F" in (await answer.json())["message"]


@pytest.mark.parametrize(
    ("value", "media"),
    [
        (b"{", "application/json"),
        (b"\xff", "text/plain"),
        (b"abc", BUNDLE),
        (b"abc", "application/x-algomesh-tensor"),
        (b"a", "text/plain; charset=none-such"),
        (bytes(content.join([content.Content("claim", "", b"x")]).payload), BUNDLE),
    ],
)
async def test_an_input_that_is_not_what_it_says_is_a_400(
    http: aiohttp.ClientSession, value: bytes, media: str
) -> None:
    status, body, _ = await post(http, fields(SHOUT, value, media))

    assert (status, body["code"]) == (400, "bad_input")


async def test_too_large_is_a_413(http: aiohttp.ClientSession) -> None:
    large = b"x" * (8 * 2**20)

    assert (await post(http, fields(SHOUT, large)))[0] == 413
    assert (await post(http, fields(b" " * (2**20 + 1))))[0] == 413


async def test_unknown_names_and_keys_have_their_status(http: aiohttp.ClientSession, up: Up) -> None:
    assert (await post(http, fields(SHOUT | "s/none")))[0] == 404
    async with aiohttp.ClientSession(up.said["gateway"]) as nobody:
        assert (await post(nobody, fields(SHOUT)))[0] == 401


def test_the_examples_of_the_page_are_curl_that_works(up: Up) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    said = subprocess.run(["curl", "-s", up.said["gateway"]], capture_output=True, timeout=30, check=True).stdout
    examples = json.loads(said)["examples"]

    for name, line in examples.items():
        known = line.replace("text/clean", "s/shout").replace("text/language", "s/size")
        command = known.replace("$GATEWAY", up.said["gateway"]).replace("YOUR_API_KEY", KEY)
        answer = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30, check=True).stdout
        assert {"call": "HELLO   WORLD", "pipe": "13", "stream": '{"part":13}'}[name] in answer
