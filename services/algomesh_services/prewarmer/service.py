"""The pre-warmer as a program: it hears of calls, and wishes for instances before they are needed.

It waits for its servers for ever, in any order. When it is down, launchers fall back to fixed idle times; nothing
else notices.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Final

import structlog

from algomesh_broker.connection import Connection
from algomesh_broker.credentials import program_identity
from algomesh_broker.request_server import RequestServer
from algomesh_services.lifecycle import Life, told_to_stop
from algomesh_services.postgres_pool import StoreAway
from algomesh_services.prewarmer.clock import Clock
from algomesh_services.prewarmer.keeping import Keeper, known_start, restore
from algomesh_services.prewarmer.metrics import watch
from algomesh_services.prewarmer.settings import Settings
from algomesh_services.prewarmer.store import Store
from algomesh_services.prewarmer.verbs import Verbs
from algomesh_services.prewarmer.warming import Warming
from algomesh_services.readiness import show_ready

log = structlog.get_logger("algomesh.prewarmer")

PROGRAM: Final = "prewarmer"
_REQUESTS_AT_ONCE: Final = 32
_STARTS_REMEMBERED: Final = 20


async def run(settings: Settings) -> None:
    """Pre-warm until SIGTERM or SIGINT. Raises OSError when a secret file cannot be read."""
    await serve(settings, told_to_stop())


async def serve(
    settings: Settings,
    stopping: asyncio.Event,
    on_ready: Callable[[], None] = lambda: None,
    clock: Clock | None = None,
) -> None:
    """Pre-warm until `stopping` is set; `on_ready` is called once it does."""
    life = Life(PROGRAM, stopping, on_ready)
    async with AsyncExitStack() as stack:
        await life.live(_work(settings, stack, life, clock or Clock()), grace_s=settings.grace_s)


async def _work(settings: Settings, stack: AsyncExitStack, life: Life, clock: Clock) -> None:
    store = await life.until_there("postgres", lambda: Store.open(settings.postgres, settings.schema), StoreAway)
    stack.push_async_callback(store.close)
    identity = program_identity(settings.secrets, PROGRAM).with_own_inbox()
    connection = await life.until_there("nats", lambda: Connection.open(settings.nats, identity, name=PROGRAM))
    stack.push_async_callback(connection.close)
    warming = await life.until_there("postgres", lambda: _remembering(settings, store, connection, clock), StoreAway)
    stack.push_async_callback(warming.close)
    keeper = Keeper(
        store,
        warming.policy,
        warming.starts,
        warming.tally,
        warming.spared,
        warming.speculation,
        clock,
        snapshot_s=settings.snapshot_s,
        write_s=settings.write_s,
        keep_days=settings.keep_days,
    )
    verbs = Verbs(store, warming.policy)
    requests = RequestServer(connection, PROGRAM, verbs.table, at_once=_REQUESTS_AT_ONCE, database_away=(StoreAway,))
    await life.until_there("nats", lambda: _up(warming, requests))
    stack.enter_context(watch(warming, connection))
    async with asyncio.TaskGroup() as tasks:
        work = [
            tasks.create_task(warming.run(), name="prewarmer-run"),
            tasks.create_task(keeper.run(), name="prewarmer-keep"),
            tasks.create_task(show_ready(lambda: connection.is_connected), name="prewarmer-readiness"),
        ]
        log.info("ready")
        life.begin()
        await life.stopping.wait()
        log.info("stopping")
        await requests.close(settings.grace_s / 4)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.grace_s / 2):
                await keeper.finish()


async def _remembering(settings: Settings, store: Store, connection: Connection, clock: Clock) -> Warming:
    """With what an earlier life of ours has learned, and which starts it knew to be up."""
    before = {stored.instance: known_start(stored) for stored in await store.up()}
    warming = Warming(connection, clock, settings.latency_value, settings.latency_values, before)
    for version, launcher, took_s in await store.latest_starts(_STARTS_REMEMBERED):
        warming.fleet.learn_start(version, launcher, took_s)
    await restore(store, warming.policy, warming.speculation)
    return warming


async def _up(warming: Warming, requests: RequestServer) -> None:
    """Calls are heard from here on, and questions answered."""
    await warming.hear()
    await requests.serve()
