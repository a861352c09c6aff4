"""A mesh without registry and launcher: one nats-server that lets everybody in, and instances the test starts."""

import asyncio
import contextlib
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import nkeys

import algomesh
from algomesh import content
from algomesh.compiling import compile_route
from algomesh.conducting import Conductor, Tally, Trip
from algomesh.lane import Lane
from algomesh.order import Order
from algomesh.pending import Pending
from algomesh.pipeline import Pipeline
from algomesh.result_cache import ResultCache
from algomesh_broker import codec, messages, subjects
from algomesh_broker.boot import Boot
from algomesh_broker.connection import Connection, Message
from algomesh_broker.credentials import public_key
from algomesh_broker.errors import Unreachable
from algomesh_broker.grants import Granted, read_token, sign_route
from algomesh_broker.identity import Identity
from algomesh_broker.names import Reference, VersionId
from algomesh_broker.platform import Lease, Leased, Options, pack, unpack
from algomesh_broker.route import Route
from algomesh_broker.server import NatsServer
from algomesh_services.registry.leases import Leases
from tests import forked
from tests.forked import Forked
from tests.integration import bare_algorithms

FOLDER = Path(__file__).parent
ROUTE_SEED = bytes(nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_USER))
ROUTE_KEY = public_key(ROUTE_SEED)


async def encoded(values: AsyncIterator[Any]) -> AsyncIterator[content.Content]:
    async for value in values:
        yield content.encode(value)


def is_algorithm(found: object) -> bool:
    return isinstance(found, algomesh.Algorithm)


class BareMesh:
    """Streams, a lane for one caller, and instances by hand."""

    def __init__(self, server: NatsServer, logs: Path) -> None:
        self.server = server
        self.logs = logs
        self.url = server.url
        self._stack = AsyncExitStack()
        self._conductors: dict[Lane, Conductor] = {}
        self._count = self._count_probes = 0
        self.instances: list[Forked | subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(forked.prepare)
        self.admin = await self.connect("admin")
        await self.make_streams()
        self.lane = await self.open_lane()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for instance in self.instances:
            instance.kill()
            await asyncio.to_thread(instance.wait)
        await self._stack.aclose()

    async def connect(self, caller: str = "k~a") -> Connection:
        return await self._stack.enter_async_context(
            await Connection.open(self.url, Identity(caller, subjects.inbox(caller)))
        )

    async def open_lane(self, caller: str = "k~a") -> Lane:
        lane = await Lane.open(await self.connect(caller))
        self._stack.callback(lane.close)
        return lane

    async def make_streams(self) -> None:
        await self._ask(
            "STREAM.CREATE.parked", name="parked", subjects=["park.>"], storage="memory", retention="workqueue",
            discard="new", discard_new_per_subject=True, max_msgs_per_subject=100, allow_msg_ttl=True,
        )  # fmt: skip
        await self._ask(
            "STREAM.CREATE.KV_directory", name="KV_directory", subjects=["$KV.directory.>"], storage="memory",
            max_msgs_per_subject=1, allow_direct=True, discard="new", allow_rollup_hdrs=True,
        )  # fmt: skip

        await self._ask(
            "STREAM.CREATE.claims", name="claims", subjects=[subjects.ALL_CLAIMS], storage="memory", discard="new",
            allow_msg_ttl=True, allow_direct=True, max_msgs_per_subject=1,
        )  # fmt: skip

        await self._ask(
            "STREAM.CREATE.cache", name="cache", subjects=[subjects.ALL_RESULTS], storage="memory", discard="old",
            allow_msg_ttl=True, allow_direct=True, max_msgs_per_subject=1, no_ack=True,
        )  # fmt: skip

    async def make_consumer(self, version: VersionId) -> None:
        subject = subjects.parked_of(version)
        config: dict[str, Any] = {
            "durable_name": version.consumer, "name": version.consumer, "ack_policy": "explicit",
            "ack_wait": 5_000_000_000, "filter_subject": subject, "mem_storage": True,
        }  # fmt: skip
        await self._ask(f"CONSUMER.CREATE.parked.{version.consumer}.{subject}", stream_name="parked", config=config)

    async def results_stored(self) -> None:
        """Return when the stream of kept results has taken what was written before: it takes one after the other."""
        self._count_probes += 1
        mark = f"cache.0.test.test.1-0-0.{self._count_probes}.result"
        self.admin.publish(mark, b"")
        give_up = time.monotonic() + 10
        with contextlib.suppress(Unreachable):  # there is no such stream
            while (await self.admin.request(f"$JS.API.DIRECT.GET.cache.{mark}")).status:
                assert time.monotonic() < give_up, "the stream of results takes nothing"
                await asyncio.sleep(0.002)

    async def claims_kept(self) -> int:
        """Bytes of payloads that lie in the stream of claims."""
        answer = await self.admin.request("$JS.API.STREAM.INFO.claims")
        return int(msgspec.json.decode(answer.data)["state"]["bytes"])

    async def make_consumer_again(self, attribute: str) -> None:
        """Streams and consumers as a launcher makes sure of them when the server is back."""
        with contextlib.suppress(AssertionError):  # the server kept the stream's configuration
            await self.make_streams()
        await self.make_consumer(getattr(bare_algorithms, attribute).version_id)

    async def publish_entry(self, version: VersionId, cache_s: float = 0.0) -> None:
        entry = messages.AlgorithmEntry(
            owner=version.owner,
            name=version.name,
            versions=[messages.VersionEntry(version=str(version.version), cache_s=cache_s)],
        )
        await self.admin.request(subjects.directory_key(version.owner, version.name), codec.encode(entry))

    async def _ask(self, verb: str, **body: Any) -> None:
        answer = await self.admin.request(f"$JS.API.{verb}", msgspec.json.encode(body))
        assert b'"error"' not in bytes(answer.data), bytes(answer.data)

    def start(self, attribute: str, **options: Any) -> Forked:
        """Start one instance of an algorithm in bare_algorithms.py."""
        algorithm = getattr(bare_algorithms, attribute)
        version: VersionId = algorithm.version_id
        self._count += 1
        record = Boot(
            instance=f"bare-{self._count}",
            launcher="bare",
            owner=version.owner,
            name=version.name,
            version=str(version.version),
            folder=str(FOLDER),
            entry=f"bare_algorithms:{attribute}",
            nats_url=self.url,
            token="ai_bare",
            options=msgspec.structs.replace(algorithm.options, **options),
            launched_ns=time.monotonic_ns(),
            route_key=ROUTE_KEY,
        )
        with (self.logs / f"bare-{self._count}.log").open("wb") as log, tempfile.TemporaryFile() as boot:
            boot.write(pack(record))
            boot.seek(0)
            instance = Forked.start(
                "tests.integration.bare_instance:main",
                stdin=boot.fileno(), stdout=log.fileno(), stderr=log.fileno(), environment=dict(os.environ),
            )  # fmt: skip
        self.instances.append(instance)
        return instance

    async def serve(self, attribute: str, **options: Any) -> Forked:
        """Make the algorithm callable and start one instance of it."""
        algorithm = getattr(bare_algorithms, attribute)
        await self.make_consumer(algorithm.version_id)
        await self.publish_entry(algorithm.version_id, algorithm.options.cache_s)
        return self.start(attribute, **options)

    async def serve_all(self, *attributes: str) -> None:
        """Start one instance of each, and return when all of them take calls."""
        for attribute in attributes:
            await self.serve(attribute)
        for attribute in attributes:
            await self.until_ready(attribute)

    async def until_ready(self, attribute: str) -> None:
        """Until an instance of it is in the group: the server says so."""
        version = getattr(bare_algorithms, attribute).version_id
        give_up = time.monotonic() + 60
        while await self._nobody_listens(version):
            assert time.monotonic() < give_up, f"no instance of {version} came"
            await asyncio.sleep(0.01)

    async def _nobody_listens(self, version: VersionId) -> bool:
        heard: list[Message] = []
        self._count_probes += 1
        inbox = f"_INBOX.admin.ready{self._count_probes}"
        subscription = self.admin.join(inbox, heard.append)
        self.admin.publish(subjects.call(version, "nobody"), b"", inbox)
        await self.admin.flush()
        await subscription.leave()
        return bool(heard)

    async def call(
        self, attribute: str, value: Any, *, timeout_s: float = 20, attempts: int = 3, lane: Lane | None = None
    ) -> tuple[Any, Pending]:
        run = secrets.token_hex(16)
        order = Order(
            version=getattr(bare_algorithms, attribute).version_id,
            content=content.encode(value),
            deadline=asyncio.get_running_loop().time() + timeout_s,
            attempts=attempts,
            run=run,
            root=run,
            parent="",
            root_caller="k~a",
        )
        lane = lane or self.lane
        result, pending = await lane.call(order)
        output = await lane.claims.load(
            content.Content(result.content_type, result.detail, result.payload), order.deadline
        )
        lane.release(result.writers, run)
        return content.decode(*output), pending

    def route(self, pipeline: Pipeline) -> Route:
        """A pipeline of algorithms in bare_algorithms.py, compiled as a client would."""
        known = {found.version_id.algorithm: found for found in vars(bare_algorithms).values() if is_algorithm(found)}

        def resolve(reference: Reference) -> tuple[VersionId, messages.VersionEntry]:
            found = known[reference.algorithm]
            entry = messages.VersionEntry(
                version=str(found.version_id.version),
                attempts=found.options.attempts,
                takes_parts=found.item_taken is not None,
                cache_s=found.options.cache_s,
            )
            return found.version_id, entry

        return compile_route(pipeline, resolve)

    async def travel(
        self, pipeline: Pipeline, value: Any, *, timeout_s: float = 20, lane: Lane | None = None
    ) -> tuple[Any, Tally]:
        """Send a pipeline as a client would, under a token that the test has signed in the registry's stead."""
        tally = Tally()
        lane, trip = lane or self.lane, self.trip(pipeline, timeout_s)
        output = await self.conductor(lane).run(trip, 0, content.encode(value), tally)
        output = await lane.claims.load(output, trip.deadline)
        lane.release(tally.writers, trip.root)
        await self.results_stored()
        return content.decode(*output), tally

    async def stream(self, pipeline: Pipeline, value: Any, *, timeout_s: float = 20) -> AsyncGenerator[Any, None]:
        """The same, part by part; `value` may be an asynchronous iterator for an `each`."""
        items = encoded(value) if isinstance(value, AsyncIterator) else content.encode(value)
        streaming = self.conductor(self.lane).stream(self.trip(pipeline, timeout_s), items, Tally())
        async with aclosing(streaming) as parts:
            async for part in parts:
                yield content.decode(*part)

    def conductor(self, lane: Lane) -> Conductor:
        """The way of one caller, which looks for kept results as a client does; one for each lane."""
        if lane not in self._conductors:
            self._conductors[lane] = Conductor(lane, None, ResultCache(lane._connection))
        return self._conductors[lane]

    def trip(self, pipeline: Pipeline, timeout_s: float) -> Trip:
        route = self.route(pipeline)
        return Trip(
            granted=self.grant(route) if route.needs_grant else None,
            route=route,
            root=secrets.token_hex(16),
            parent="",
            root_caller="k~a",
            deadline=asyncio.get_running_loop().time() + timeout_s,
        )

    def grant(self, route: Route, sender: str = "k~a", **options: Any) -> Granted:
        return read_token(sign_route(sender, route.data, ROUTE_SEED, **options)[0])

    def serve_leases(self, most: int) -> None:
        """Count runs in the registry's stead."""
        leases = Leases(most)

        def answer(message: Message) -> None:
            request = subjects.parse_platform(message.subject)
            ask = codec.decode_ask(message.data)
            wanted = unpack(Lease, ask.body)
            leased = messages.Answer(body=pack(Leased(runs=leases.take(wanted.root, wanted.runs))))
            reply = subjects.reply("platform~registry", request.caller, ask.session, ask.call)
            self.admin.publish(reply, codec.encode(leased))

        self.admin.join(subjects.platform_requests("registry", "lease"), answer)

    def announce_death(self, attribute: str, number: int, reason: str = "crash") -> None:
        """What a launcher says when an instance has died."""
        version = getattr(bare_algorithms, attribute).version_id
        death = messages.Death(instance=f"bare-{number}", reason=reason, detail="killed by the test")
        self.admin.publish(subjects.fleet(version), codec.encode(death))


__all__ = ["BareMesh", "Options"]
