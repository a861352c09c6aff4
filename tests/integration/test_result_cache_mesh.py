"""Kept results in a whole mesh, with its accounts, its registry and its launcher."""

from collections.abc import Iterator

import pytest

import algomesh
from algomesh import errors
from tests.integration.up_fixtures import Up

pytestmark = pytest.mark.integration

# Each run has its own number, so whoever sees one twice knows that nothing was run for it.
ALGORITHMS = """
import uuid
from algomesh import algorithm

@algorithm("me/clean", version="1.0.0", cache="10m")
def clean(text: str) -> str:
    return f"{text.strip()} {uuid.uuid4().hex}"

@algorithm("me/lemmatize", version="1.0.0", cache="10m")
def lemmatize(text: str) -> str:
    return f"{text} {uuid.uuid4().hex}"

@algorithm("me/plain", version="1.0.0")
def plain(text: str) -> str:
    return text

@algorithm("me/length", version="1.0.0")
def length(text: str) -> int:
    return len(text)
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("kept")
    (folder / "kept_algorithms.py").write_text(ALGORITHMS)
    with Up(folder / "state") as up:
        published = up.run("publish", str(folder / "kept_algorithms.py"))
        assert published.returncode == 0, published.stderr
        yield up


@pytest.fixture
def client(up: Up) -> Iterator[algomesh.Client]:
    with algomesh.client(up.said["key"], up.said["nats"]) as client:
        yield client


def key_of(up: Up, name: str, scope: str) -> str:
    created = up.run("key", "create", name, "--may", scope)
    assert created.returncode == 0, created.stderr
    return str(created.stdout.strip())


def test_a_result_is_kept_for_every_key_that_may_call_it(up: Up, client: algomesh.Client) -> None:
    first = client.algo("me/clean").pipe("one")

    with algomesh.client(key_of(up, "ann", "call:me/clean"), up.said["nats"]) as other:
        again = other.algo("me/clean").pipe("one")
        assert (again.result, again.metadata.cached) == (first.result, True)
        assert not first.metadata.cached
    with (
        algomesh.client(key_of(up, "bob", "call:me/plain"), up.said["nats"]) as stranger,
        pytest.raises(errors.PermissionDenied),
    ):
        stranger.algo("me/clean").pipe("one")
    with algomesh.client(up.said["key"], up.said["gateway"]) as remote:
        assert remote.algo("me/clean").pipe("one").result == first.result


def test_pipelines_share_what_they_begin_with(client: algomesh.Client) -> None:
    shared = client.algo("me/clean") | "me/lemmatize"

    one = (shared | "me/plain").pipe("two").result
    other = (shared | (client.algo("me/plain") & "me/length")).pipe("two").result

    assert other == [one, len(one)]


def test_what_is_kept_is_left_out_in_mid_chain(up: Up, client: algomesh.Client) -> None:
    kept = (client.algo("me/clean") | "me/lemmatize").pipe("three").result
    assert up.run("stop", "me/clean").returncode == up.run("stop", "me/lemmatize").returncode == 0

    through = client.algo("me/plain") | "me/clean" | "me/lemmatize"
    between = (through | "me/length").pipe("three")
    last = through.pipe("three")

    assert (last.result, last.metadata.cached, last.metadata.algorithm) == (kept, True, "me/lemmatize")
    assert between.result == len(kept)
