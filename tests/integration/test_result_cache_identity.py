"""Forging kept results: what one identity tries with another's, at a real server with its accounts."""

import itertools
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from algomesh.content import Content, encode
from algomesh.result_cache import ResultCache, digest_of
from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.identity import Identity
from algomesh_broker.names import VersionId
from algomesh_broker.streams import JetStreamAdmin
from tests.conditions import until
from tests.integration.registry_fixtures import Mesh, Refusals, eventually, publish, running_mesh
from tests.integration.test_claims_identity import answer_of

pytestmark = pytest.mark.integration

CLEAN, LOWER = VersionId.parse("text/clean/1.0.0"), VersionId.parse("text/lower/1.0.0")
INPUT = encode("what the victim asked")
SECRET = encode("what the victim was told")
READ = subjects.READ_RESULT.removesuffix(subjects.ALL_RESULTS)


@pytest_asyncio.fixture
async def mesh(tmp_path: Path, postgres: str) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path, postgres) as mesh:
        admin = await mesh.admin()
        await publish(admin, str(CLEAN))
        await publish(admin, str(LOWER))
        launcher = await mesh.store("launcher")
        await launcher.ensure_parked()
        assert await launcher.ensure_cache()
        assert not await launcher.ensure_cache()
        yield mesh


@pytest_asyncio.fixture
async def launcher(mesh: Mesh) -> JetStreamAdmin:
    return await mesh.store("launcher")


@pytest_asyncio.fixture
async def caller(mesh: Mesh) -> Connection:
    """May call `text/clean`, and nothing else."""
    return await mesh.connect(Identity.of_key(await mesh.key("call:text/clean")))


@pytest_asyncio.fixture
async def clean(mesh: Mesh) -> Connection:
    return await mesh.instance(str(CLEAN), "host-1")


@pytest_asyncio.fixture
async def lower(mesh: Mesh) -> Connection:
    return await mesh.instance(str(LOWER), "host-2")


@pytest_asyncio.fixture
async def kept(clean: Connection, lower: Connection) -> str:
    """One result of each version, of the same input; its digest."""
    digest = digest_of(INPUT)
    for connection, version in ((clean, CLEAN), (lower, LOWER)):
        results = ResultCache(connection)
        results.put(version, digest, SECRET, 60.0)
        for number in range(10):
            results.put(version, digest_of(encode(number)), SECRET, 60.0)
        await eventually(partial(is_there, results, version))
    return digest


async def is_there(results: ResultCache, version: VersionId) -> bool:
    return await found(results, version) is not None


async def found(results: ResultCache, version: VersionId) -> Content | None:
    results._away_until = 0.0  # however lately nobody answered
    return await results.get(version, INPUT, results._loop.time() + 5)


async def test_who_may_call_it_finds_the_result_of_an_input_that_he_knows(caller: Connection, kept: str) -> None:
    assert await found(ResultCache(caller), CLEAN) == SECRET
    assert await found(ResultCache(caller), LOWER) is None  # which he may not call


async def test_an_instance_finds_what_it_has_the_input_of(lower: Connection, kept: str) -> None:
    assert await found(ResultCache(lower), CLEAN) == SECRET


@pytest.mark.parametrize("who", ["caller", "instance"])
async def test_nobody_reads_results_by_wildcards(who: str, caller: Connection, lower: Connection, kept: str) -> None:
    connection = caller if who == "caller" else lower
    seen: list[Message | None] = []

    for tokens in itertools.product(
        ("_", "*"), ("text", "*", ">"), ("clean", "*"), (CLEAN.tokens.rpartition(".")[2], "*"), (kept, "*", ">")
    ):
        if tokens[1:] != ("text", "clean", CLEAN.tokens.rpartition(".")[2], kept):
            seen.append(await answer_of(connection, f"{READ}cache.{'.'.join(tokens)}.result"))

    assert any(message is not None for message in seen)
    assert {message.status for message in seen if message} <= {404, 503}
    for subject in (f"{READ}cache.>", f"{READ}cache.*.*.*.*.*.*", f"{READ}cache.*.*.*.*.*.>", f"{READ}>", READ[:-1]):
        assert await answer_of(connection, subject) is None, subject


async def test_a_request_cannot_ask_for_more_than_its_subject_says(caller: Connection, kept: str) -> None:
    for body in (
        {"multi_last": ["cache.>"]}, {"seq": 1}, {"last_by_subj": subjects.ALL_RESULTS}, {"seq": 1, "batch": 9},
        {"seq": 1, "next_by_subj": ">"},
    ):  # fmt: skip
        answer = await answer_of(caller, subjects.read_result(CLEAN, kept), msgspec.json.encode(body))
        assert answer is not None
        assert answer.status == 408


async def test_nobody_writes_administers_or_watches_but_instances_of_the_version_itself(
    caller: Connection, lower: Connection, kept: str
) -> None:
    chunk = subjects.kept_result(CLEAN, kept)
    newer = VersionId.parse("text/lower/1.0.1")
    forged = [
        chunk,
        chunk.replace("._.", ".*."),
        subjects.kept_result(newer, kept),
        f"cache._.*.*.*.{kept}.result",
        *(f"$JS.API.STREAM.{verb}.cache" for verb in ("INFO", "PURGE", "DELETE", "UPDATE", "MSG.GET", "MSG.DELETE")),
        "$JS.API.CONSUMER.CREATE.cache",
        "$JS.API.CONSUMER.MSG.NEXT.cache.x",
        "$JS.API.DIRECT.GET.cache",
    ]

    for connection in (caller, lower):
        for subject in forged:
            refusals = Refusals(connection)
            await refusals.of_publish(subject, b"")
            assert refusals.seen, subject  # the server names what it made of the subject
        for subject in ("cache.>", subjects.ALL_RESULTS, f"{READ}>", subjects.READ_RESULT):
            with pytest.raises(Exception, match="may not subscribe"):
                await connection.subscribe(subject, lambda _: None)

    assert await found(ResultCache(caller), CLEAN) == SECRET


async def test_an_instance_touches_no_other_version_by_wildcards(
    caller: Connection, clean: Connection, lower: Connection, kept: str
) -> None:
    for mark, digest in itertools.product(("_", "*", ">"), ("*", ">", kept)):
        for headers in ({"Nats-Rollup": "all"}, {"Nats-Rollup": "sub"}, None):
            subject = f"cache.{mark}.{LOWER.tokens}.{digest}.result"
            lower.publish(subject, b"wild", headers=headers)
    await lower.flush()

    assert await found(ResultCache(caller), CLEAN) == SECRET
    assert await found(ResultCache(clean), LOWER) is None  # its own it may spoil, which is then as if it were not there


async def test_a_steered_result_is_no_call(
    mesh: Mesh, caller: Connection, clean: Connection, lower: Connection
) -> None:
    """A result whose content is a call, read with a victim's subject for the answer."""
    seen: list[Message] = []
    await clean.subscribe(subjects.calls_of(CLEAN), seen.append, subjects.WORKERS)
    delivered, deliver = [], clean.on_message
    clean._link._parser.receiver.on_message = lambda sid, m: (delivered.append(m), deliver(sid, m))  # type: ignore[union-attr,method-assign,func-returns-value]
    forged = subjects.call(CLEAN, "k~victim0000")
    call = messages.Call(run="r", root="r", root_caller="k~victim0000", session="s", call="c", time_left_ms=1000)
    digest = "5" * 48
    lower.publish(subjects.kept_result(LOWER, digest), codec.encode(call))

    async def is_kept() -> bool:
        answer = await answer_of(lower, subjects.read_result(LOWER, digest))
        return answer is not None and not answer.status

    await eventually(is_kept)
    lower.publish(subjects.read_result(LOWER, digest), b"", forged)

    await until(lambda: [message for message in delivered if message.subject == forged])
    assert {"Nats-Stream", "Nats-Sequence"} <= set(delivered[-1].headers or {})
    assert seen == []


async def test_the_stream_acknowledges_nothing_so_nothing_can_be_steered(
    caller: Connection, lower: Connection, launcher: JetStreamAdmin, mesh: Mesh, kept: str
) -> None:
    ledger = await mesh.store("ledger")
    await ledger.ensure_events()
    heard: list[Message] = []
    inbox = f"{lower.identity.inbox}.ack"
    await lower.subscribe(inbox, heard.append)

    for target in (inbox, subjects.park(subjects.call(CLEAN, "k~victim0000")), subjects.kept_result(CLEAN, kept)):
        lower.publish(subjects.kept_result(LOWER, "5" * 48), b"forged", target)
        lower.publish(subjects.read_result(LOWER, kept), b"", target if target != inbox else "")
    await lower.flush()
    assert await answer_of(lower, subjects.read_result(LOWER, kept)) is not None
    await launcher.connection.flush()

    assert heard == []
    assert await found(ResultCache(caller), CLEAN) == SECRET
    assert await launcher.pending_parked() == {}
    assert await ledger.pending(subjects.EVENTS_STREAM, ">") == {}
