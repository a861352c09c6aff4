"""Forging claims: what one identity tries with another's payload, at a real server with its accounts."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from algomesh_broker import codec, messages, subjects
from algomesh_broker.claims import ClaimStore
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import ClaimGone
from algomesh_broker.identity import Identity
from algomesh_broker.names import VersionId
from algomesh_broker.streams import JetStreamAdmin
from tests.conditions import until
from tests.integration.registry_fixtures import Mesh, Refusals, publish, running_mesh

pytestmark = pytest.mark.integration

CLEAN, LOWER = VersionId.parse("text/clean/1.0.0"), VersionId.parse("text/lower/1.0.0")
SECRET = b"the victim's payload " * 50
HASH_OF_STAR = "789356349"
READ = subjects.READ_CLAIM.removesuffix(subjects.ALL_CLAIMS)


@pytest_asyncio.fixture
async def mesh(tmp_path: Path, postgres: str) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path, postgres) as mesh:
        admin = await mesh.admin()
        await publish(admin, str(CLEAN))
        await publish(admin, str(LOWER))
        launcher = await mesh.store("launcher")
        await launcher.ensure_parked()
        await launcher.ensure_claims()
        yield mesh


@pytest_asyncio.fixture
async def launcher(mesh: Mesh) -> JetStreamAdmin:
    return await mesh.store("launcher")


@pytest_asyncio.fixture
async def caller(mesh: Mesh) -> Connection:
    return await mesh.connect(Identity.of_key(await mesh.key("call:text/*")))


@pytest_asyncio.fixture
async def instance(mesh: Mesh) -> Connection:
    return await mesh.instance(str(CLEAN), "host-1")


@pytest_asyncio.fixture
async def victim(mesh: Mesh) -> Connection:
    return await mesh.connect(Identity.of_key(await mesh.key("call:text/*")))


@pytest_asyncio.fixture
async def claim(victim: Connection) -> messages.Claim:
    """The victim's claim, and some more of them."""
    store = ClaimStore(victim)
    for _ in range(10):
        await store.put(SECRET, 60.0)
    return await store.put(SECRET, 60.0)


async def answer_of(connection: Connection, subject: str, payload: bytes = b"") -> Message | None:
    """What JetStream answers, or None when the server refused to ask."""
    refusals = Refusals(connection)
    answered: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    inbox = f"{connection.identity.inbox}.forged"

    def on_answer(message: Message) -> None:
        if not answered.done():
            answered.set_result(message)

    subscription = connection.join(inbox, on_answer)
    try:
        connection.publish(subject, payload, inbox)
        await connection.flush()
        await until(lambda: answered.done() or refusals.seen)
        return answered.result() if answered.done() else None
    finally:
        await subscription.leave()


@pytest.mark.parametrize("who", ["caller", "instance"])
async def test_nobody_reads_a_claim_by_wildcards(
    who: str, caller: Connection, instance: Connection, claim: messages.Claim
) -> None:
    connection = caller if who == "caller" else instance
    owner = claim.id.partition(".")[0]
    seen: list[Message | None] = []

    for tokens in itertools.product(("_", "*", ">", HASH_OF_STAR), (owner, "*", ">"), ("*", ">"), ("0", "*", ">")):
        seen.append(await answer_of(connection, f"{READ}claim.{'.'.join(tokens)}.chunk"))

    assert {message.status for message in seen if message} <= {404, 503}
    for subject in (f"{READ}claim.>", f"{READ}claim.*.*.*.*.*", f"{READ}claim.*.*.*.*.>", f"{READ}>", READ[:-1]):
        assert await answer_of(connection, subject) is None, subject


async def test_a_request_cannot_ask_for_more_than_its_subject_says(caller: Connection, claim: messages.Claim) -> None:
    for body in (
        {"multi_last": ["claim.>"]}, {"seq": 1}, {"last_by_subj": subjects.ALL_CLAIMS}, {"seq": 1, "batch": 9},
        {"seq": 1, "next_by_subj": ">"},
    ):  # fmt: skip
        for subject in (subjects.read_claim(claim.id, 7), f"{READ}{subjects.ALL_CLAIMS}"):
            answer = await answer_of(caller, subject, msgspec.json.encode(body))
            assert answer is not None
            assert answer.status == 408


async def test_who_knows_the_id_reads_it_whatever_else_the_request_says(
    caller: Connection, claim: messages.Claim
) -> None:
    answer = await answer_of(caller, subjects.read_claim(claim.id, 0).replace("._.", ".123."))

    assert answer is not None
    assert bytes(answer.data) == SECRET


@pytest.mark.parametrize("who", ["caller", "instance"])
async def test_nobody_writes_deletes_or_administers_anothers_claim(
    who: str, caller: Connection, instance: Connection, victim: Connection, claim: messages.Claim
) -> None:
    connection = caller if who == "caller" else instance
    chunk = subjects.claim_chunk(claim.id, 0)
    forged = [
        chunk,
        chunk.replace("._.", ".*."),
        f"claim._.{victim.identity.caller}.*.0.chunk",
        *(f"$JS.API.STREAM.{verb}.claims" for verb in ("INFO", "PURGE", "DELETE", "UPDATE", "MSG.GET", "MSG.DELETE")),
        "$JS.API.CONSUMER.CREATE.claims",
        "$JS.API.CONSUMER.MSG.NEXT.claims.x",
        "$JS.API.DIRECT.GET.claims",
    ]

    for subject in forged:
        refusals = Refusals(connection)
        await refusals.of_publish(subject, b"")
        assert refusals.seen, subject  # the server names what it made of the subject
    for subject in ("claim.>", subjects.ALL_CLAIMS, f"{READ}>", subjects.READ_CLAIM):
        with pytest.raises(Exception, match="may not subscribe"):
            await connection.subscribe(subject, lambda _: None)

    assert bytes(await ClaimStore(caller).get(claim)) == SECRET


async def test_writing_with_wildcards_touches_no_claim_but_ones_own_name(
    caller: Connection, victim: Connection, claim: messages.Claim
) -> None:
    me = caller.identity.caller
    own = await ClaimStore(caller).put(b"mine", 60.0)

    for tokens in itertools.product(("_", "*", ">"), ("*", ">"), ("0", "*", ">")):
        mark, id_, number = tokens
        caller.publish(f"claim.{mark}.{me}.{id_}.{number}.chunk", b"wild", headers={"Nats-Rollup": "all"})
        caller.publish(f"claim.{mark}.{me}.{id_}.{number}.chunk", b"wild", headers={"Nats-Rollup": "sub"})
        caller.publish(f"claim.{mark}.{me}.{id_}.{number}.chunk", b"wild")
    await caller.flush()

    assert bytes(await ClaimStore(victim).get(own)) == b"mine"
    assert bytes(await ClaimStore(caller).get(claim)) == SECRET


async def test_a_claim_that_names_wildcards_is_refused_before_it_is_asked_for(caller: Connection) -> None:
    for id_ in ("*.*", f"*.{'0' * 32}", f"{caller.identity.caller}.*", ">"):
        with pytest.raises(ClaimGone):
            await ClaimStore(caller).get(messages.Claim(id=id_, size_bytes=1, chunks=1))


@pytest.mark.parametrize("headers", [b"", b"NATS/1.0\r\nA: bXX", b"NATS/1.0", b"nonsense", b"NATS/1.0 503\r\n\r\n"])
async def test_a_steered_claim_cannot_hide_that_it_was_read_from_a_stream(
    mesh: Mesh, caller: Connection, instance: Connection, headers: bytes
) -> None:
    """Its content is the attacker's, its subject is the victim's: only the server's own headers tell it from a call."""
    seen: list[Message] = []
    await instance.subscribe(subjects.calls_of(CLEAN), seen.append, subjects.WORKERS)
    # As the wire has it, before a receiver may have looked at it.
    delivered, deliver = [], instance.on_message
    instance._link._parser.receiver.on_message = lambda sid, m: (delivered.append(m), deliver(sid, m))  # type: ignore[union-attr,method-assign,func-returns-value]
    forged = subjects.call(CLEAN, "k~victim0000")
    call = codec.encode(
        messages.Call(run="r", root="r", root_caller="k~victim0000", session="s", call="c", time_left_ms=1000)
    )
    own = f"{caller.identity.caller}.{'5' * 32}"
    chunk = subjects.claim_chunk(own, 0)
    if headers:
        size = len(headers)
        caller._write(b"HPUB %b %d %d\r\n%b%b\r\n" % (chunk.encode(), size, size + len(call), headers, call))
    else:
        caller.publish(chunk, call)
    await caller.flush()
    assert await answer_of(caller, subjects.read_claim(own, 0)) is not None

    caller.publish(subjects.read_claim(own, 0), b"", forged)

    await until(lambda: [message for message in delivered if message.subject == forged])
    assert {"Nats-Stream", "Nats-Sequence"} <= set(delivered[-1].headers or {})
    assert seen == []


@pytest.mark.parametrize(
    "target",
    ["$JS.API.STREAM.DELETE.claims", "$JS.API.STREAM.PURGE.claims", "event.caller.k~victim0000", "park", "claim"],
)
async def test_a_steered_answer_reaches_no_stream(
    caller: Connection, victim: Connection, launcher: JetStreamAdmin, mesh: Mesh, claim: messages.Claim, target: str
) -> None:
    ledger = await mesh.store("ledger")
    await ledger.ensure_events()
    if target == "park":
        target = subjects.park(subjects.call(LOWER, victim.identity.caller))
    elif target == "claim":
        target = subjects.claim_chunk(claim.id, 0)
    own = await ClaimStore(caller).put(b"forged", 60.0)

    caller.publish(subjects.read_claim(own.id, 0), b"", target)
    caller.publish(subjects.claim_chunk(own.id, 1), b"forged", target)
    await caller.flush()
    await launcher.connection.flush()

    assert bytes(await ClaimStore(caller).get(claim)) == SECRET
    assert await launcher.pending_parked() == {}
    assert await ledger.pending(subjects.EVENTS_STREAM, ">") == {}
