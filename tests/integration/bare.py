"""A mesh without registry and launcher: one nats-server that lets everybody in, and instances the test starts."""

import asyncio
import contextlib
import secrets
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from algomesh import content
from algomesh.lane import Lane, Order
from algomesh.pending import Pending
from algomesh_broker import codec, messages, subjects
from algomesh_broker.boot import Boot
from algomesh_broker.connection import Connection
from algomesh_broker.identity import Identity
from algomesh_broker.names import VersionId
from algomesh_broker.platform import Options, pack
from algomesh_broker.server import NatsServer
from tests.integration import bare_algorithms

FOLDER = Path(__file__).parent


class BareMesh:
    """Streams, a lane for one caller, and instances by hand."""

    def __init__(self, server: NatsServer, logs: Path) -> None:
        self.server = server
        self.logs = logs
        self._stack = AsyncExitStack()
        self._count = 0
        self.instances: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Self:
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
            await Connection.open(self.server.url, Identity(caller, subjects.inbox(caller)))
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

    async def make_consumer(self, version: VersionId) -> None:
        subject = subjects.parked_of(version)
        config: dict[str, Any] = {
            "durable_name": version.consumer, "name": version.consumer, "ack_policy": "explicit",
            "ack_wait": 5_000_000_000, "filter_subject": subject, "mem_storage": True,
        }  # fmt: skip
        await self._ask(f"CONSUMER.CREATE.parked.{version.consumer}.{subject}", stream_name="parked", config=config)

    async def make_consumer_again(self, attribute: str) -> None:
        """Streams and consumers as a launcher makes sure of them when the server is back."""
        with contextlib.suppress(AssertionError):  # the server kept the stream's configuration
            await self.make_streams()
        await self.make_consumer(getattr(bare_algorithms, attribute).version_id)

    async def publish_entry(self, version: VersionId) -> None:
        entry = messages.AlgorithmEntry(
            owner=version.owner, name=version.name, versions=[messages.VersionEntry(version=str(version.version))]
        )
        await self.admin.request(subjects.directory_key(version.owner, version.name), codec.encode(entry))

    async def _ask(self, verb: str, **body: Any) -> None:
        answer = await self.admin.request(f"$JS.API.{verb}", msgspec.json.encode(body))
        assert b'"error"' not in bytes(answer.data), bytes(answer.data)

    def start(self, attribute: str, **options: Any) -> subprocess.Popen[bytes]:
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
            nats_url=self.server.url,
            token="ai_bare",
            options=msgspec.structs.replace(algorithm.options, **options),
            launched_ns=time.monotonic_ns(),
        )
        command = [sys.executable, str(FOLDER / "bare_instance.py")]
        with (self.logs / f"bare-{self._count}.log").open("wb") as log:
            instance = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        assert instance.stdin is not None
        instance.stdin.write(pack(record))
        instance.stdin.close()
        self.instances.append(instance)
        return instance

    async def serve(self, attribute: str, **options: Any) -> subprocess.Popen[bytes]:
        """Make the algorithm callable and start one instance of it."""
        version = getattr(bare_algorithms, attribute).version_id
        await self.make_consumer(version)
        await self.publish_entry(version)
        return self.start(attribute, **options)

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
        result, pending = await (lane or self.lane).call(order)
        return content.decode(result.content_type, result.detail, result.payload), pending

    def announce_death(self, attribute: str, number: int, reason: str = "crash") -> None:
        """What a launcher says when an instance has died."""
        version = getattr(bare_algorithms, attribute).version_id
        death = messages.Death(instance=f"bare-{number}", reason=reason, detail="killed by the test")
        self.admin.publish(subjects.fleet(version), codec.encode(death))


__all__ = ["BareMesh", "Options"]
