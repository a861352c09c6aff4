"""Forging: what one identity tries in another's name, the broker refuses."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from algomesh_broker import codec, credentials, messages, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import Forbidden, Unauthenticated
from algomesh_broker.identity import Identity, new_key, sign_instance_token
from algomesh_broker.names import VersionId
from algomesh_broker.streams import JetStreamAdmin
from tests.conditions import until
from tests.integration.registry_fixtures import ADMIN_KEY, Mesh, Refusals, eventually, publish, running_mesh

pytestmark = [pytest.mark.integration, pytest.mark.alone]  # every refusal has its 50 ms

CLEAN, LOWER, SECRET = (VersionId.parse(f"{name}/1.0.0") for name in ("text/clean", "text/lower", "bank/secret"))
REFUSED_WITHIN_S = 0.05
VICTIM = "k~victim0000"


@pytest_asyncio.fixture
async def mesh(tmp_path: Path, postgres: str) -> AsyncIterator[Mesh]:
    """A registry, the stream of parked calls, and three algorithms; text/clean may call text/lower."""
    async with running_mesh(tmp_path, postgres) as mesh:
        admin = await mesh.admin()
        await publish(admin, str(LOWER))
        await publish(admin, str(SECRET))
        await publish(admin, str(CLEAN), calls=["text/lower"])
        launcher = await mesh.store("launcher")
        await launcher.ensure_parked()
        for version in (CLEAN, LOWER, SECRET):
            await launcher.ensure_version(version)
        yield mesh


@pytest_asyncio.fixture
async def launcher(mesh: Mesh) -> JetStreamAdmin:
    return await mesh.store("launcher")


@pytest_asyncio.fixture
async def caller(mesh: Mesh) -> Connection:
    """A key that may call everything of the owner `text`."""
    return await mesh.connect(Identity.of_key(await mesh.key("call:text/*")))


@pytest_asyncio.fixture
async def instance(mesh: Mesh) -> Connection:
    return await mesh.instance(str(CLEAN), "host-1")


async def assert_publishes_refused(connection: Connection, forged: list[str]) -> None:
    refusals = Refusals(connection)
    await connection.flush()
    for subject in forged:
        took_s = await refusals.of_publish(subject)
        assert took_s >= 0, f"{subject} was not refused"
        assert took_s < REFUSED_WITHIN_S, f"{subject} was refused after {took_s * 1000:.0f} ms"


async def assert_subscriptions_refused(connection: Connection, forged: list[tuple[str, str]]) -> None:
    for subject, queue in forged:
        began = time.perf_counter()
        with pytest.raises(Forbidden):
            await connection.subscribe(subject, lambda _: None, queue)
        assert time.perf_counter() - began < REFUSED_WITHIN_S, subject


JETSTREAM_ADMINISTRATION = [
    "$JS.API.INFO",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.CREATE.mine",
    "$JS.API.STREAM.UPDATE.parked",
    "$JS.API.STREAM.DELETE.parked",
    "$JS.API.STREAM.PURGE.parked",
    "$JS.API.STREAM.INFO.parked",
    "$JS.API.STREAM.MSG.GET.parked",
    "$JS.API.STREAM.MSG.DELETE.parked",
    "$JS.API.STREAM.SNAPSHOT.parked",
    f"$JS.API.CONSUMER.CREATE.parked.{CLEAN.consumer}",
    "$JS.API.CONSUMER.CREATE.parked",
    f"$JS.API.CONSUMER.DURABLE.CREATE.parked.{CLEAN.consumer}",
    f"$JS.API.CONSUMER.DELETE.parked.{CLEAN.consumer}",
    f"$JS.API.CONSUMER.INFO.parked.{CLEAN.consumer}",
    "$JS.API.CONSUMER.NAMES.parked",
    "$JS.API.DIRECT.GET.parked",
    "$JS.API.STREAM.DELETE.KV_directory",
    "$KV.directory.text.clean",
    "$SYS.REQ.USER.AUTH",
    "$SYS.REQ.SERVER.PING",
]


class TestAKey:
    async def test_may_call_park_and_ask_for_what_its_scopes_say(self, caller: Connection) -> None:
        refusals = Refusals(caller)
        me = caller.identity.caller

        for subject in (
            subjects.call(CLEAN, me),
            subjects.park(subjects.call(LOWER, me)),
            subjects.demand(LOWER, me),
            subjects.control("host-1", me),
            subjects.caller_events(me),
            subjects.platform("registry", "route", me),
        ):
            await refusals.of_publish(subject)

        assert refusals.seen == []

    async def test_cannot_use_another_callers_name(self, caller: Connection) -> None:
        await assert_publishes_refused(
            caller,
            [
                subjects.call(CLEAN, VICTIM),
                subjects.call(CLEAN, "text~clean"),
                subjects.park(subjects.call(CLEAN, VICTIM)),
                subjects.demand(CLEAN, VICTIM),
                subjects.control("host-1", VICTIM),
                subjects.caller_events(VICTIM),
                subjects.platform("ledger", "runs", VICTIM),
                subjects.platform("registry", "route", VICTIM),
            ],
        )

    async def test_cannot_call_what_it_may_not(self, caller: Connection) -> None:
        me = caller.identity.caller
        await assert_publishes_refused(
            caller,
            [
                subjects.call(SECRET, me),
                subjects.park(subjects.call(SECRET, me)),
                subjects.demand(SECRET, me),
                subjects.hop(CLEAN, me),
                subjects.park(subjects.hop(CLEAN, me)),
                subjects.platform("registry", "key-create", me),
                subjects.platform("registry", "publish", me, "text/clean"),
                subjects.platform("launcher", "stop", me, "text/clean"),
                subjects.platform("launcher", "logs", me, "text/clean"),
                subjects.platform("ledger", "runs", me),
                subjects.run_events(CLEAN),
                subjects.fleet(CLEAN),
                subjects.host_beat("host"),
            ],
        )

    async def test_cannot_answer_in_an_instances_name(self, caller: Connection) -> None:
        me = caller.identity.caller
        await assert_publishes_refused(
            caller,
            [
                subjects.reply("text~clean", VICTIM, "s", "c"),
                subjects.reply("text~clean", me, "s", "c"),
                subjects.reply("platform~registry", me, "s", "c"),
                subjects.no_responders(VICTIM, "s", "c"),
            ],
        )

    async def test_cannot_listen_to_others(self, caller: Connection) -> None:
        await assert_subscriptions_refused(
            caller,
            [
                (subjects.calls_of(CLEAN), ""),
                (subjects.calls_of(CLEAN), subjects.WORKERS),
                ("call.>", ""),
                ("hop.>", ""),
                (">", ""),
                ("reply.>", ""),
                (subjects.replies_to(VICTIM, "s"), ""),
                (subjects.inbox(VICTIM) + ".>", ""),
                ("_INBOX.>", ""),
                ("park.>", ""),
                ("event.>", ""),
                ("control.>", ""),
                (subjects.fleet(SECRET), ""),
                ("fleet.>", ""),
                (subjects.platform_requests("registry"), ""),
                ("$JS.>", ""),
                ("$SYS.>", ""),
            ],
        )

    async def test_cannot_administer_jetstream_nor_pull(self, caller: Connection) -> None:
        pull = f"$JS.API.CONSUMER.MSG.NEXT.parked.{CLEAN.consumer}"
        ack = f"$JS.ACK.parked.{CLEAN.consumer}.1.1.1.1.0"

        await assert_publishes_refused(caller, [*JETSTREAM_ADMINISTRATION, pull, ack])

    async def test_that_nobody_made_is_turned_away_at_once_and_never_repeated(self, mesh: Mesh) -> None:
        key = new_key()
        began = time.perf_counter()

        with pytest.raises(Unauthenticated) as refused:
            await mesh.connect(Identity.of_key(key))

        assert time.perf_counter() - began < 0.5
        assert key not in str(refused.value)
        assert mesh.server.config.log is not None
        assert key not in mesh.server.config.log.read_text()

    async def test_with_the_id_of_a_good_one_and_another_secret_is_turned_away(self, mesh: Mesh) -> None:
        with pytest.raises(Unauthenticated):
            await mesh.connect(Identity.of_key(f"{ADMIN_KEY[:-1]}0"))

    async def test_of_an_administrator_may_do_it_all_but_answer(self, mesh: Mesh) -> None:
        admin = await mesh.admin()
        me = admin.identity.caller
        refusals = Refusals(admin)

        for verb in ("publish", "upload", "manifest", "key-create", "key-list", "key-revoke"):
            await refusals.of_publish(subjects.platform("registry", verb, me, "x/y"))
        await refusals.of_publish(subjects.platform("launcher", "ps", me))
        await refusals.of_publish(subjects.platform("ledger", "runs", me))
        await refusals.of_publish(subjects.call(SECRET, me))
        await admin.subscribe(subjects.fleet(SECRET), lambda _: None)

        assert refusals.seen == []
        await assert_publishes_refused(admin, [subjects.reply("text~clean", me, "s", "c"), *JETSTREAM_ADMINISTRATION])


class TestAnInstance:
    async def test_may_do_its_work(self, instance: Connection) -> None:
        refusals = Refusals(instance)
        for subject, queue in (
            (subjects.calls_of(CLEAN), subjects.WORKERS),
            (subjects.hops_of(CLEAN), subjects.WORKERS),
            (subjects.controls_of("host-1"), ""),
            (subjects.replies_to("text~clean", "s"), ""),
            (subjects.fleet(LOWER), ""),
            (subjects.fleet(SECRET), ""),
            (subjects.HOST_BEATS, ""),
        ):
            await instance.subscribe(subject, lambda _: None, queue)

        for subject in (
            subjects.reply("text~clean", VICTIM, "s", "c"),
            subjects.hop(SECRET, "text~clean"),
            subjects.park(subjects.hop(SECRET, "text~clean")),
            subjects.park(subjects.call(CLEAN, VICTIM)),
            subjects.park(subjects.hop(CLEAN, "some~other")),
            subjects.demand(CLEAN, VICTIM),
            subjects.demand(SECRET, "text~clean"),
            subjects.platform("registry", "route", "text~clean"),
            subjects.call(LOWER, "text~clean"),
            subjects.control("host-2", "text~clean"),
            subjects.run_events(CLEAN),
            subjects.caller_events("text~clean"),
        ):
            await refusals.of_publish(subject)

        assert refusals.seen == []

    async def test_cannot_use_another_name_nor_call_what_was_not_granted(self, instance: Connection) -> None:
        await assert_publishes_refused(
            instance,
            [
                subjects.call(LOWER, VICTIM),
                subjects.call(LOWER, "text~lower"),
                subjects.call(SECRET, "text~clean"),
                subjects.call(CLEAN, VICTIM),
                subjects.park(subjects.call(SECRET, "text~clean")),
                subjects.park(subjects.call(LOWER, VICTIM)),
                subjects.hop(LOWER, "text~lower"),
                subjects.park(subjects.hop(LOWER, "text~lower")),
                subjects.demand(SECRET, VICTIM),
                subjects.platform("registry", "route", "text~lower"),
                subjects.platform("registry", "route", VICTIM),
                subjects.control("host-2", VICTIM),
                subjects.run_events(LOWER),
                subjects.caller_events(VICTIM),
                subjects.fleet(CLEAN),
                subjects.host_beat("host"),
                subjects.platform("registry", "archive", "text~clean"),
                subjects.platform("registry", "manifest", "text~clean", "text/lower"),
            ],
        )

    async def test_cannot_reply_in_anothers_name(self, instance: Connection) -> None:
        await assert_publishes_refused(
            instance,
            [
                subjects.reply("text~lower", VICTIM, "s", "c"),
                subjects.reply("platform~registry", VICTIM, "s", "c"),
                subjects.no_responders(VICTIM, "s", "c"),
            ],
        )

    async def test_cannot_listen_to_others_calls_or_replies(self, instance: Connection) -> None:
        await assert_subscriptions_refused(
            instance,
            [
                (subjects.calls_of(LOWER), subjects.WORKERS),
                (subjects.hops_of(LOWER), subjects.WORKERS),
                (subjects.calls_of(CLEAN), ""),
                (subjects.calls_of(CLEAN), "spies"),
                ("call.text.*.1-0-0.*", subjects.WORKERS),
                ("call.>", subjects.WORKERS),
                (subjects.replies_to(VICTIM, "s"), ""),
                ("reply.text.clean.>", ""),
                (subjects.controls_of("host-2"), ""),
                (subjects.inbox("host-2") + ".>", ""),
                ("fleet.>", ""),
                ("park.>", ""),
                ("event.>", ""),
                ("demand.>", ""),
            ],
        )

    async def test_cannot_pull_anothers_parked_calls_nor_administer(self, instance: Connection) -> None:
        await assert_publishes_refused(
            instance,
            [
                f"$JS.API.CONSUMER.MSG.NEXT.parked.{LOWER.consumer}",
                f"$JS.API.CONSUMER.MSG.NEXT.parked.{SECRET.consumer}",
                f"$JS.ACK.parked.{LOWER.consumer}.1.1.1.1.0",
                *JETSTREAM_ADMINISTRATION,
            ],
        )

    async def test_takes_and_acknowledges_its_own_parked_calls(
        self, mesh: Mesh, caller: Connection, instance: Connection, launcher: JetStreamAdmin
    ) -> None:
        subject = subjects.park(subjects.call(CLEAN, caller.identity.caller))
        acked = await caller.request(subject, b"a parked call")
        taken: list[Message] = []
        await instance.subscribe(f"{instance.identity.inbox}.pull", taken.append)

        instance.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.parked.{CLEAN.consumer}",
            b'{"batch":1,"expires":5000000000}',
            f"{instance.identity.inbox}.pull",
        )
        await until(lambda: taken)
        instance.publish(taken[0].reply, b"+ACK")

        assert b'"stream":"parked"' in bytes(acked.data)
        assert (taken[0].subject, bytes(taken[0].data)) == (subject, b"a parked call")

        async def is_empty() -> bool:
            return await launcher.pending_parked() == {}

        await eventually(is_empty)

    async def test_with_a_token_of_its_own_making_is_turned_away(self, mesh: Mesh) -> None:
        forger_seed = credentials.read_seed(mesh.secrets, "gateway")
        token = sign_instance_token(SECRET, "host-9", forger_seed)

        with pytest.raises(Unauthenticated):
            await mesh.connect(Identity.of_instance(token, SECRET, "host-9"))

    async def test_of_a_version_that_was_never_published_is_turned_away(self, mesh: Mesh) -> None:
        with pytest.raises(Unauthenticated):
            await mesh.instance("text/nothing/1.0.0", "host-9")


class TestASteeredAnswer:
    """JetStream answers wherever a request's reply field points: across accounts it meets nothing it could move."""

    @pytest.mark.parametrize(
        "target",
        [
            "$JS.API.STREAM.DELETE.parked",
            "$JS.API.STREAM.PURGE.parked",
            "$JS.API.STREAM.DELETE.KV_directory",
            f"$JS.API.CONSUMER.DELETE.parked.{LOWER.consumer}",
        ],
    )
    async def test_administers_nothing(
        self, caller: Connection, instance: Connection, launcher: JetStreamAdmin, target: str
    ) -> None:
        kept = subjects.park(subjects.call(LOWER, caller.identity.caller))
        await caller.request(kept, b"must stay")
        pull = f"$JS.API.CONSUMER.MSG.NEXT.parked.{CLEAN.consumer}"

        caller.publish(subjects.park(subjects.call(CLEAN, caller.identity.caller)), b"", target)
        caller.publish(subjects.call(CLEAN, caller.identity.caller), b"", target, {"Nats-Trace-Dest": target})
        caller.publish("$JS.API.DIRECT.GET.KV_directory", b'{"seq":999999}', target)
        await caller.flush()
        instance.publish(subjects.park(subjects.call(CLEAN, VICTIM)), b"{}", target)
        instance.publish(pull, b'{"batch":5,"no_wait":true}', target)
        instance.publish(pull, b'{"batch":5,"no_wait":true}', target)
        for number in range(1, 6):
            instance.publish(f"$JS.ACK.parked.{CLEAN.consumer}.1.{number}.{number}.1.0", b"+ACK", target)
        instance.publish(subjects.run_events(CLEAN), b"", target)
        await instance.flush()
        await launcher.connection.flush()

        assert (await launcher.pending_parked(LOWER)) == {kept: 1}
        assert await launcher.delete_version(LOWER)  # it was still there

    async def test_never_reaches_a_worker_as_a_call_in_anothers_name(
        self, mesh: Mesh, caller: Connection, instance: Connection
    ) -> None:
        heard: list[Message] = []
        worker = await mesh.instance(str(LOWER), "host-2")
        await worker.subscribe(subjects.calls_of(LOWER), heard.append, subjects.WORKERS)
        forged = subjects.call(LOWER, VICTIM)
        envelope = codec.encode(
            messages.Call(run="r", root="r", root_caller=VICTIM, session="s", call="c", time_left_ms=1000)
        )

        instance.publish(subjects.park(subjects.call(CLEAN, VICTIM)), envelope, forged)
        instance.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.parked.{CLEAN.consumer}", b'{"batch":1,"expires":2000000000}', forged
        )
        caller.publish("$JS.API.DIRECT.GET.KV_directory", b'{"last_by_subj":"$KV.directory.text.clean"}', forged)
        caller.publish(subjects.call(CLEAN, caller.identity.caller), envelope, forged, {"Nats-Trace-Dest": forged})
        await instance.flush()
        await caller.flush()
        caller.publish(subjects.call(LOWER, caller.identity.caller), envelope)
        await until(lambda: any(message.subject == subjects.call(LOWER, caller.identity.caller) for message in heard))

        assert not [message for message in heard if not message.subject.startswith("call.text.lower.")]
        as_victim = [message for message in heard if message.subject == forged]
        for message in as_victim:  # a PubAck or an entry of the directory: never a Call
            with pytest.raises(ValueError, match="not a call message"):
                codec.decode_call(message.data)

    async def test_parks_nothing_in_anothers_name(
        self, caller: Connection, instance: Connection, launcher: JetStreamAdmin
    ) -> None:
        forged = subjects.park(subjects.call(LOWER, VICTIM))

        caller.publish(subjects.park(subjects.call(CLEAN, caller.identity.caller)), b"x", forged)
        await caller.flush()
        instance.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.parked.{CLEAN.consumer}", b'{"batch":1,"expires":1000000000}', forged
        )
        await instance.flush()
        await launcher.connection.flush()

        assert await launcher.pending_parked(LOWER) == {}
