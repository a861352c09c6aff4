"""The ledger as a program: what runs did, kept in PostgreSQL, off the call path.

It waits for its servers for ever, in any order. When it is down, events wait for it in their stream (24 hours);
nothing else notices.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Final

import structlog

from algomesh_broker.connection import Connection
from algomesh_broker.credentials import program_identity, store_identity
from algomesh_broker.request_server import RequestServer
from algomesh_broker.streams import JetStreamAdmin
from algomesh_services.courtesy import give_way
from algomesh_services.ledger.feed import Feed
from algomesh_services.ledger.keeper import Keeper
from algomesh_services.ledger.metrics import watch
from algomesh_services.ledger.settings import Settings
from algomesh_services.ledger.store import Store
from algomesh_services.ledger.verbs import Verbs
from algomesh_services.lifecycle import Life, told_to_stop
from algomesh_services.postgres_pool import StoreAway
from algomesh_services.readiness import show_ready

log = structlog.get_logger("algomesh.ledger")

PROGRAM: Final = "ledger"
_REQUESTS_AT_ONCE: Final = 32


async def run(settings: Settings) -> None:
    """Keep the ledger until SIGTERM or SIGINT. Raises OSError when a secret file cannot be read."""
    give_way()  # calls go before their record, which waits in its stream
    await serve(settings, told_to_stop())


async def serve(settings: Settings, stopping: asyncio.Event, on_ready: Callable[[], None] = lambda: None) -> None:
    """Keep the ledger until `stopping` is set; `on_ready` is called once it does."""
    life = Life(PROGRAM, stopping, on_ready)
    async with AsyncExitStack() as stack:
        await life.live(_work(settings, stack, life), grace_s=settings.grace_s)


async def _work(settings: Settings, stack: AsyncExitStack, life: Life) -> None:
    secrets = settings.secrets
    store = await life.until_there("postgres", lambda: Store.open(settings.postgres, settings.schema), StoreAway)
    stack.push_async_callback(store.close)
    identity = program_identity(secrets, PROGRAM).with_own_inbox()
    connection = await life.until_there("nats", lambda: Connection.open(settings.nats, identity, name=PROGRAM))
    stack.push_async_callback(connection.close)
    admin_identity = store_identity(secrets, PROGRAM)
    admin = await life.until_there("nats", lambda: JetStreamAdmin.open(settings.nats, admin_identity))
    stack.push_async_callback(admin.close)

    feed = Feed(admin, batch=settings.batch, linger_s=settings.linger_s, gather_s=settings.gather_s)
    stack.push_async_callback(feed.close)
    keeper = Keeper(
        store,
        feed,
        keep_days=settings.keep_days,
        upkeep_s=settings.upkeep_s,
        delete_rows=settings.delete_rows,
    )
    requests = RequestServer(
        connection, PROGRAM, Verbs(store).table, at_once=_REQUESTS_AT_ONCE, database_away=(StoreAway,)
    )
    await life.until_there("nats", lambda: _up(feed, keeper, requests, connection))
    await stack.enter_async_context(watch(keeper, connection))
    async with asyncio.TaskGroup() as tasks:
        work = [
            tasks.create_task(keeper.keep(), name="ledger-keep"),
            tasks.create_task(keeper.look_after(), name="ledger-look-after"),
            tasks.create_task(show_ready(lambda: connection.is_connected), name="ledger-readiness"),
        ]
        log.info("ready")
        life.begin()
        await life.stopping.wait()
        log.info("stopping")
        await requests.close(settings.grace_s / 2)
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.grace_s / 2):
                await keeper.finish()
        for task in work:
            task.cancel()


async def _up(feed: Feed, keeper: Keeper, requests: RequestServer, connection: Connection) -> None:
    """Events are kept from here on, and questions answered."""
    await feed.prepare()
    await keeper.hear_fleet(connection)
    await requests.serve()
