"""The registry's life: come up as its servers do, serve, go away in order.

It waits for PostgreSQL and NATS for ever, in any order, and says what it waits for. It is ready when
it answers connections and requests. Told to stop, it takes no more requests, finishes those under
way within its grace, and closes.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import structlog

from algomesh_broker import credentials
from algomesh_broker.connection import Connection
from algomesh_broker.directory import Directory
from algomesh_broker.identity import Identity, key_id
from algomesh_broker.request_server import RequestServer
from algomesh_broker.streams import JetStreamAdmin
from algomesh_broker.usertoken import Issuer
from algomesh_services.lifecycle import Life, told_to_stop
from algomesh_services.postgres_pool import StoreAway
from algomesh_services.readiness import show_ready
from algomesh_services.registry.archives import Archives
from algomesh_services.registry.attaching import Attacher
from algomesh_services.registry.callout import Callout, Grants
from algomesh_services.registry.keys import KeyRing
from algomesh_services.registry.metrics import watch
from algomesh_services.registry.mirror import Mirror
from algomesh_services.registry.rights import Rights
from algomesh_services.registry.routes import RouteSigner
from algomesh_services.registry.settings import Settings
from algomesh_services.registry.store import Store
from algomesh_services.registry.upkeep import Upkeep
from algomesh_services.registry.verbs import Verbs

log = structlog.get_logger("algomesh.registry")

PROGRAM = "registry"
ADMIN_KEY_NAME = "administrator"
_REQUESTS_AT_ONCE = 64
_CLOSE_S = 2.0


async def run(settings: Settings) -> None:
    """Be a registry until SIGTERM or SIGINT. Raises OSError when the state directory cannot be used."""
    await serve(settings, told_to_stop())


async def serve(settings: Settings, stopping: asyncio.Event, on_ready: Callable[[], None] = lambda: None) -> None:
    """Be a registry until `stopping` is set; `on_ready` is called once it answers. Raises OSError."""
    life = Life(PROGRAM, stopping, on_ready)
    async with AsyncExitStack() as stack:
        await life.live(_work(settings, stack, life), grace_s=settings.grace_s + _CLOSE_S)


async def _work(settings: Settings, stack: AsyncExitStack, life: Life) -> None:
    requests, upkeep = await _start(settings, stack, life)
    log.info("ready", program=PROGRAM)
    life.begin()
    await _first_of(life.stopping, upkeep.task)
    log.info("stopping", program=PROGRAM)
    await requests.close(settings.grace_s)
    if upkeep.task.done():
        upkeep.task.result()  # it runs for ever: what ended it is raised here


async def _start(settings: Settings, stack: AsyncExitStack, life: Life) -> tuple[RequestServer, Upkeep]:
    """Everything up, in the order of need; what was opened is closed by `stack`, last first."""
    archives = Archives(settings.archives, settings.archive_limit_bytes)
    await asyncio.to_thread(archives.prepare)
    secrets = settings.secrets
    issuer = Issuer(credentials.read_seed(secrets, credentials.ISSUER))
    keys, grants = KeyRing(credentials.read_pepper(secrets)), Grants()

    store = await life.until_there("postgres", lambda: Store.open(settings.postgres, settings.schema), StoreAway)
    stack.push_async_callback(store.close)
    await life.until_there("postgres", lambda: _ensure_admin_key(settings, store, keys), StoreAway)

    connection = await _connected(settings, credentials.program_identity(secrets, PROGRAM), PROGRAM, stack, life)
    admin_identity = credentials.store_identity(secrets, PROGRAM)
    admin = await life.until_there("nats", lambda: JetStreamAdmin.open(settings.nats, admin_identity))
    stack.push_async_callback(admin.close)
    await life.until_there("nats", admin.ensure_directory)
    directory = await life.until_there("nats", lambda: Directory.open(admin.connection))
    stack.push_async_callback(directory.close)
    mirror = Mirror(admin, directory, store)
    system = None
    if credentials.has_seed(secrets, credentials.SYSTEM):
        system_identity = Identity.of_program("system", credentials.read_seed(secrets, credentials.SYSTEM))
        system = await _connected(settings, system_identity, "registry-system", stack, life)

    upkeep = Upkeep(store, admin, mirror, keys, grants, system)
    upkeep.start()
    stack.push_async_callback(upkeep.close)
    await _first_of(upkeep.is_fresh, upkeep.task)
    if upkeep.task.done():
        upkeep.task.result()
    launchers, route_key = credentials.read_launchers(secrets), credentials.read_route_key(secrets)
    signers = (*launchers, route_key)  # its own: it signs the tokens of instances that users attach
    callout = Callout(
        connection,
        issuer,
        signers,
        keys,
        grants,
        find_key=upkeep.find_key,
        find_version=upkeep.find_version,
        session_s=settings.session_s,
    )
    stack.push_async_callback(callout.close)
    rights = Rights(keys, grants, find_key=upkeep.find_key, find_version=upkeep.find_version)
    seed = credentials.read_seed(secrets, PROGRAM)
    routes, attacher = RouteSigner(seed, signers, rights), Attacher(store, keys, seed, route_key)
    verbs = Verbs(store, mirror, archives, keys, rights, routes, attacher)
    requests = RequestServer(connection, PROGRAM, verbs.table, at_once=_REQUESTS_AT_ONCE, database_away=(StoreAway,))
    stack.enter_context(watch(grants, connection))
    await requests.serve()
    await callout.serve()
    showing = asyncio.create_task(show_ready(lambda: connection.is_connected), name="registry-readiness")
    stack.callback(showing.cancel)
    return requests, upkeep


async def _first_of(event: asyncio.Event, task: asyncio.Task[None]) -> None:
    """Wait for the event, or for the end of the task."""
    waiting = asyncio.create_task(event.wait(), name="registry-wait")
    try:
        await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


async def _ensure_admin_key(settings: Settings, store: Store, keys: KeyRing) -> None:
    """The key in `admin.key` is the administrator's; an earlier one of this state directory ends."""
    key = credentials.read_admin_key(settings.secrets)
    if key is not None:
        revoked = await store.set_key(key_id(key), ADMIN_KEY_NAME, keys.hash(key), ["admin"])
        if revoked:
            log.info("keys_revoked", key_ids=revoked, reason="another administrator's key was given")


async def _connected(
    settings: Settings, identity: Identity, name: str, stack: AsyncExitStack, life: Life
) -> Connection:
    own = identity.with_own_inbox()
    connection = await life.until_there("nats", lambda: Connection.open(settings.nats, own, name=name))
    stack.push_async_callback(connection.close)
    return connection
