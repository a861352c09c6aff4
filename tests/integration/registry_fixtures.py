"""A mesh without a launcher: nats-server with its accounts, PostgreSQL, and a registry in this process."""

import asyncio
import hashlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from algomesh_broker import codec, credentials, platform, subjects
from algomesh_broker.authorization import authorization_config
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import Forbidden
from algomesh_broker.identity import Identity, sign_instance_token
from algomesh_broker.messages import Answer, Ask
from algomesh_broker.names import VersionId
from algomesh_broker.server import NatsConfig, NatsServer
from algomesh_broker.streams import JetStreamAdmin
from algomesh_broker.usertoken import Issuer
from algomesh_services.registry.callout import Callout, Grants
from algomesh_services.registry.keys import KeyRing
from algomesh_services.registry.service import serve
from algomesh_services.registry.settings import Settings
from tests.serving import running

T = TypeVar("T", bound=Struct)
ADMIN_KEY = "am_administra_0123456789abcdef0123456789abcdef"
_calls = itertools.count(1)


class Refused(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.code}: {answer.message}")
        self.code, self.message = answer.code, answer.message


@dataclass
class Mesh:
    """Everything a test needs of a mesh; connections it opens are closed with it."""

    server: NatsServer
    settings: Settings
    stack: AsyncExitStack
    secrets: Path = field(init=False)

    def __post_init__(self) -> None:
        self.secrets = self.settings.secrets

    @property
    def url(self) -> str:
        return self.server.url

    async def connect(self, identity: Identity) -> Connection:
        connection = await Connection.open(self.url, identity, name="test")
        self.stack.push_async_callback(connection.close)
        return connection

    async def admin(self) -> Connection:
        return await self.connect(Identity.of_key(ADMIN_KEY))

    async def program(self, name: str) -> Connection:
        return await self.connect(credentials.program_identity(self.secrets, name))

    async def store(self, name: str) -> JetStreamAdmin:
        admin = await JetStreamAdmin.open(self.url, credentials.store_identity(self.secrets, name))
        self.stack.push_async_callback(admin.close)
        return admin

    async def key(self, *scopes: str, name: str = "") -> str:
        """A new key with these scopes."""
        admin = await self.admin()
        wanted = platform.KeyCreate(name=name or f"key {next(_calls)}", scopes=list(scopes))
        created = await ask(admin, "key-create", wanted, platform.KeyCreated)
        return created.key

    async def instance(self, reference: str, instance: str = "host-1") -> Connection:
        version = VersionId.parse(reference)
        token = sign_instance_token(version, instance, credentials.read_seed(self.secrets, "launcher"))
        return await self.connect(Identity.of_instance(token, version, instance))

    async def publish(self, connection: Connection, reference: str, **fields: Any) -> platform.Published:
        return await publish(connection, reference, **fields)

    @asynccontextmanager
    async def registry(self) -> AsyncIterator["asyncio.Task[None]"]:
        """A registry, until the block ends."""
        async with running(partial(serve, self.settings)) as task:
            yield task


@asynccontextmanager
async def running_mesh(folder: Path, postgres: str, *, with_registry: bool = True) -> AsyncIterator[Mesh]:
    settings = Settings(nats="", postgres=postgres, state=folder / "state", grace_s=2.0)
    credentials.ensure_secrets(settings.secrets)
    credentials.ensure_admin_key(settings.secrets, ADMIN_KEY)
    config = NatsConfig(
        store_dir=folder / "nats",
        runtime_dir=folder / "run",
        log=folder / "run" / "nats.log",
        is_synced=False,
        extra=authorization_config(settings.secrets),
    )
    async with AsyncExitStack() as outer:
        server = await outer.enter_async_context(NatsServer(config))
        stack = await outer.enter_async_context(AsyncExitStack())
        there = Settings(nats=server.url, postgres=postgres, state=settings.state, grace_s=2.0)
        mesh = Mesh(server, there, stack)
        if with_registry:
            # Entered first, so that it is closed after every connection it let in.
            await stack.enter_async_context(mesh.registry())
        yield mesh


async def eventually(holds: Callable[[], Awaitable[bool]], timeout_s: float = 5.0) -> None:
    """Wait until the async condition holds. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not await holds():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def let_in_every_instance(mesh: Mesh) -> AsyncIterator[None]:
    """Answer the callout as a registry would that had published every version, without PostgreSQL."""

    class Everything(Grants):
        def calls_of(self, version: str) -> tuple[str, ...]:
            return ()

    async def nothing(_: str) -> None:
        return None

    callout = Callout(
        await mesh.program("registry"),
        Issuer(credentials.read_seed(mesh.secrets, credentials.ISSUER)),
        credentials.read_launchers(mesh.secrets),
        KeyRing(credentials.read_pepper(mesh.secrets)),
        Everything(),
        find_key=nothing,
        find_version=nothing,
        session_s=3600.0,
    )
    await callout.serve()
    yield
    await callout.close()


async def ask(
    connection: Connection,
    verb: str,
    body: Struct,
    type_: type[T],
    *,
    algorithm: str = "",
    program: str = "registry",
) -> T:
    """Ask a program, and return its answer's body. Raises Refused, Forbidden."""
    caller, session, call = connection.identity.caller, "session", str(next(_calls))
    answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def on_reply(message: Message) -> None:
        if message.subject.endswith(f".{call}") and not answered.done():
            answered.set_result(codec.decode_answer(message.data))

    def on_forbidden(operation: str, subject: str) -> None:
        if not answered.done():
            answered.set_exception(Forbidden(operation, subject))

    replies = await connection.subscribe(subjects.replies_to(caller, session), on_reply)
    connection.on_forbidden.append(on_forbidden)
    try:
        request = Ask(session=session, call=call, body=platform.pack(body))
        connection.publish(subjects.platform(program, verb, caller, algorithm), codec.encode(request))
        async with asyncio.timeout(10):
            answer = await answered
    finally:
        connection.on_forbidden.remove(on_forbidden)
        await replies.leave()
    if answer.code:
        raise Refused(answer)
    return platform.unpack(type_, answer.body)


async def upload(connection: Connection, algorithm: str, data: bytes, *, digest: str = "") -> str:
    """Upload an archive piece by piece, and return its digest."""
    digest = digest or hashlib.sha256(data).hexdigest()
    received = 0
    while received < len(data):
        piece = data[received : received + platform.CHUNK_BYTES]
        wanted = platform.Upload(digest=digest, size_bytes=len(data), offset=received, data=piece)
        received = (await ask(connection, "upload", wanted, platform.Uploaded, algorithm=algorithm)).received_bytes
    return digest


async def publish(
    connection: Connection, reference: str, *, data: bytes = b"archive", **fields: Any
) -> platform.Published:
    """Upload and publish a version."""
    version = VersionId.parse(reference)
    digest = await upload(connection, version.algorithm, data)
    entry, requirements = fields.pop("entry", "mod:fn"), fields.pop("requirements", [])
    manifest = platform.Manifest(
        owner=version.owner,
        name=version.name,
        version=str(version.version),
        entry=entry,
        requirements=requirements,
        options=platform.Options(**fields),
    )
    wanted = platform.Publish(manifest=manifest, digest=digest)
    return await ask(connection, "publish", wanted, platform.Published, algorithm=version.algorithm)


class Refusals:
    """What the server refused on a connection, and how soon."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.seen: list[tuple[str, str]] = []
        connection.on_forbidden.append(lambda operation, subject: self.seen.append((operation, subject)))

    async def of_publish(self, subject: str, payload: bytes = b"x", reply: str = "") -> float:
        """Publish, and return the seconds until the server's refusal; -1 when it refused nothing."""
        self.seen.clear()
        began = time.perf_counter()
        self._connection.publish(subject, payload, reply)
        await self._connection.flush()
        took_s = time.perf_counter() - began
        return took_s if ("publish", subject) in self.seen else -1.0
