"""What tests of the launcher need around it: versions to start, a registry that has them, a caller that parks calls."""

import asyncio
import contextlib
import hashlib
import io
import itertools
import tarfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from textwrap import dedent
from typing import Any, Self, TypeVar

from msgspec import Struct

from algomesh_broker import codec, messages, platform, subjects
from algomesh_broker.codec import decode_fleet
from algomesh_broker.connection import Connection, Message
from algomesh_broker.credentials import ensure_secrets, store_identity
from algomesh_broker.identity import Identity
from algomesh_broker.names import VersionId
from algomesh_broker.streams import JetStreamAdmin
from algomesh_services.launcher import service
from algomesh_services.launcher.budget import Capacity
from algomesh_services.launcher.driver import Driver, LaunchFailed
from algomesh_services.launcher.process_driver import ProcessDriver
from algomesh_services.launcher.settings import Settings
from tests.conditions import until

T = TypeVar("T", bound=Struct)
GIB = 2**30
CALLER = "k~tester"


def pack_archive(files: dict[str, str]) -> bytes:
    """A tar archive of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


async def until_so(condition: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    """Wait until an async condition holds. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.01)


class Shelf:
    """A registry of versions in memory: it answers `manifest` and `archive`, and writes the directory."""

    def __init__(self, connection: Connection, admin: JetStreamAdmin) -> None:
        self.asked: Counter[str] = Counter()
        self._connection, self._admin = connection, admin
        self._manifests: dict[VersionId, platform.StoredManifest] = {}
        self.archives: dict[str, bytes] = {}

    async def open(self) -> None:
        await self._admin.ensure_directory()
        await self._connection.subscribe(subjects.platform_requests("registry"), self._on_request)

    async def publish(
        self,
        reference: str,
        code: str,
        *,
        archive: bytes | None = None,
        command: list[str] | None = None,
        image: str = "",
        requirements: list[str] | None = None,
        **options: Any,
    ) -> VersionId:
        """Put a version there whose entry is `main` in `code`, or with a command and an archive."""
        version = VersionId.parse(reference)
        head = "from algomesh import algorithm\n"
        if archive is None:
            archive = pack_archive({"code.py": "", f"algo_{version.name}.py": head + dedent(code)})
        digest = hashlib.sha256(archive).hexdigest()
        manifest = platform.Manifest(
            owner=version.owner,
            name=version.name,
            version=str(version.version),
            entry=f"algo_{version.name}:main",
            options=platform.Options(**options),
            command=command or [],
            image=image,
            requirements=requirements or [],
        )
        self._manifests[version] = platform.StoredManifest(manifest=manifest, digest=digest)
        self.archives[digest] = archive
        entries = [
            messages.VersionEntry(
                version=str(each.version), digest=stored.digest, min_instances=stored.manifest.options.min_instances
            )
            for each, stored in sorted(self._manifests.items())
            if each.algorithm == version.algorithm
        ]
        entry = messages.AlgorithmEntry(owner=version.owner, name=version.name, versions=entries)
        await self._admin.put_entries([entry])
        return version

    def publish_pipeline(self, reference: str, pipeline: bytes) -> VersionId:
        """Have a manifest of a named pipeline to give."""
        version = VersionId.parse(reference)
        manifest = platform.Manifest(
            owner=version.owner, name=version.name, version=str(version.version), entry="", pipeline=pipeline
        )
        digest = hashlib.sha256(pipeline).hexdigest()
        self._manifests[version] = platform.StoredManifest(manifest=manifest, digest=digest)
        return version

    def _on_request(self, message: Message) -> None:
        request, ask = subjects.parse_platform(message.subject), codec.decode_ask(message.data)
        self.asked[request.verb] += 1
        answer = self._answer(request, ask)
        reply = subjects.reply("platform~registry", request.caller, ask.session, ask.call)
        self._connection.publish(reply, codec.encode(answer))

    def _answer(self, request: subjects.PlatformRequest, ask: messages.Ask) -> messages.Answer:
        if request.verb == "manifest":
            wanted = platform.unpack(platform.FetchManifest, ask.body)
            stored = self._manifests.get(VersionId.parse(f"{request.algorithm}/{wanted.version}"))
            if stored is None:
                return messages.Answer(code="unknown_version", message=f"{request.algorithm} has no {wanted.version}")
            return messages.Answer(body=platform.pack(stored))
        fetch = platform.unpack(platform.FetchArchive, ask.body)
        archive = self.archives[fetch.digest]
        data = archive[fetch.offset : fetch.offset + platform.CHUNK_BYTES]
        return messages.Answer(body=platform.pack(platform.ArchiveChunk(size_bytes=len(archive), data=data)))


class Caller:
    """Calls as the SDK does: live first, parked when nobody is there."""

    def __init__(self, connection: Connection) -> None:
        self.fleet: list[tuple[float, str, messages.Fleet]] = []
        self.beats: list[tuple[float, messages.HostBeat]] = []
        self._connection = connection
        self._numbers = itertools.count(1)
        self._pending: dict[str, tuple[str, bytes, VersionId, asyncio.Future[messages.Reply]]] = {}

    async def open(self) -> None:
        await self._connection.subscribe(subjects.replies_to(CALLER, "s1"), self._on_reply)
        await self._connection.subscribe(subjects.ALL_FLEET, self._on_fleet)

    def start(self, version: VersionId, payload: object = None, *, demand: bool = True) -> "asyncio.Future[Any]":
        """Call; the future has a Result or a Failure."""
        call_id = str(next(self._numbers))
        data = codec.encode(self.call(call_id, payload))
        subject = subjects.call(version, CALLER)
        future: asyncio.Future[messages.Reply] = asyncio.get_running_loop().create_future()
        self._pending[call_id] = (subject if demand else "", data, version, future)
        self._connection.publish(subject, data, subjects.no_responders(CALLER, "s1", call_id))
        return future

    @staticmethod
    def call(call_id: str, payload: object = None) -> messages.Call:
        import json

        return messages.Call(
            run=f"r{call_id}", root=f"r{call_id}", root_caller=CALLER, session="s1", call=call_id,
            time_left_ms=60_000, payload=memoryview(json.dumps(payload).encode()),
        )  # fmt: skip

    async def __call__(self, version: VersionId, payload: object = None, timeout_s: float = 20.0) -> messages.Reply:
        async with asyncio.timeout(timeout_s):
            reply: messages.Reply = await self.start(version, payload)
        return reply

    def of(self, kind: type[T]) -> list[T]:
        """What the fleet has said of this kind."""
        return [message for _, _, message in self.fleet if isinstance(message, kind)]

    def _on_reply(self, message: Message) -> None:
        call_id = message.subject.rpartition(".")[2]
        subject, data, version, future = self._pending[call_id]
        if message.status == 503:
            parked = subjects.park(subjects.call(version, CALLER))
            self._connection.publish(parked, data, headers={"Nats-TTL": "60s"})
            if subject:
                self._connection.publish(
                    subjects.demand(version, CALLER), codec.encode(messages.Demand(run=f"r{call_id}"))
                )
            return
        reply = codec.decode_reply(message.data)
        if isinstance(reply, messages.Result | messages.Failure) and not future.done():
            future.set_result(reply)

    def _on_fleet(self, message: Message) -> None:
        now = time.monotonic()
        if message.subject.startswith("fleet.host."):
            self.beats.append((now, codec.decode_host_beat(message.data)))
            return
        said = decode_fleet(message.data)
        self.fleet.append((now, message.subject.removeprefix("fleet."), said))
        if isinstance(said, messages.Unable):
            for _, _, version, future in self._pending.values():
                if version.tokens == message.subject.removeprefix("fleet.") and not future.done():
                    failure = messages.Failure(run="", attempt=1, code=said.code, message=said.message)
                    future.set_result(failure)


class Mesh:
    """A launcher on a nats-server that asks nobody who he is, with a shelf of versions and a caller."""

    def __init__(
        self, url: str, folder: Path, *, make_driver: Callable[[Settings], Driver] | None = None, **options: Any
    ) -> None:
        self._make_driver = make_driver or (lambda _: ProcessDriver(watch_interval_s=0.05))
        capacity = options.pop("capacity", Capacity(max_instances=20, memory_bytes=64 * GIB))
        options.setdefault("stop_s", 1.0)
        self.settings = Settings(nats_url=url, state=folder / "state", capacity=capacity, **options)
        self.stop = asyncio.Event()
        self.launcher: asyncio.Task[None] | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(ensure_secrets, self.settings.secrets)
        url = self.settings.nats_url
        self.connection = await self._open("platform~registry", "_INBOX.registry")
        self.admin = await JetStreamAdmin.open(url, store_identity(self.settings.secrets, "registry"))
        self._stack.push_async_callback(self.admin.close)
        self.shelf = Shelf(self.connection, self.admin)
        await self.shelf.open()
        self.caller = Caller(await self._open(CALLER, f"_INBOX.{CALLER}"))
        await self.caller.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()
        await self._stack.aclose()

    async def begin(self) -> None:
        """Start the launcher, and wait until it beats."""
        self.stop.clear()
        known = len(self.caller.beats)
        driver = self._make_driver(self.settings)
        self.launcher = asyncio.create_task(service.serve(self.settings, self.stop, driver=driver))
        await until(lambda: len(self.caller.beats) > known or self._failed(), 10)
        await until_so(self.answers)
        with contextlib.suppress(LaunchFailed):  # which a test may want
            await driver.warm(frozenset())

    async def end(self) -> None:
        """Stop the launcher as SIGTERM would."""
        self.stop.set()
        if self.launcher is not None:
            launcher, self.launcher = self.launcher, None
            await launcher

    async def ps(self) -> list[platform.InstanceRow]:
        """The fleet."""
        return (await self.ask("ps", platform.Ps(), platform.InstanceRows)).instances

    async def ask(self, verb: str, body: Struct, type_: type[T], algorithm: str = "") -> T:
        """Ask the launcher. Raises AssertionError with the code when it says no."""
        future: asyncio.Future[messages.Answer] = asyncio.get_running_loop().create_future()

        def answered(message: Message) -> None:
            if not future.done():
                future.set_result(messages.Answer(code="away") if message.status else codec.decode_answer(message.data))

        subscription = self.connection.join(subjects.replies_to("platform~registry", "ask"), answered)
        self.connection.publish(
            subjects.platform("launcher", verb, "platform~registry", algorithm),
            codec.encode(messages.Ask(session="ask", call="1", body=platform.pack(body))),
            subjects.no_responders("platform~registry", "ask", "1"),
        )
        try:
            async with asyncio.timeout(10):
                answer = await future
        finally:
            await subscription.leave()
        assert not answer.code, f"{answer.code}: {answer.message}"
        return platform.unpack(type_, answer.body)

    def _failed(self) -> bool:
        assert self.launcher is not None
        if self.launcher.done():
            self.launcher.result()
        return False

    async def answers(self) -> bool:
        """Whether the launcher does."""
        try:
            await self.ps()
        except AssertionError:
            return False
        return True

    async def _open(self, caller: str, inbox: str) -> Connection:
        connection = await Connection.open(self.settings.nats_url, Identity(caller, inbox))
        self._stack.push_async_callback(connection.close)
        return connection
