"""The gateway as a program: HTTP in, calls on NATS out.

It has no power of its own: each request runs under its caller's key, on that key's own connection, and the broker
says what it may do. It starts without NATS, and says so under `/readyz`.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from aiohttp import web

from algomesh_services.gateway.algorithmia_face import AlgorithmiaFace
from algomesh_services.gateway.app import Faces, build_app
from algomesh_services.gateway.detached import Detached
from algomesh_services.gateway.guard import Guard
from algomesh_services.gateway.intake import Intake
from algomesh_services.gateway.keys import KeyPool
from algomesh_services.gateway.link import Link
from algomesh_services.gateway.mesh_face import MeshFace
from algomesh_services.gateway.metrics import watch
from algomesh_services.gateway.pages import Pages
from algomesh_services.gateway.settings import Settings
from algomesh_services.gateway.stream_face import StreamFace
from algomesh_services.lifecycle import told_to_stop
from algomesh_services.readiness import show_ready

log = structlog.get_logger("algomesh.gateway")

_LINGER_S: Final = 5.0
_CANCEL_S: Final = 0.2
# What aiohttp logs by itself would quote a malformed header, and a header may be a key.
_SILENT = logging.Logger("algomesh.gateway.http", logging.CRITICAL + 1)  # not to be configured


class PortInUse(OSError):
    """The gateway's port is taken, or may not be used; `str()` says what to do."""


class Address(NamedTuple):
    """Where a gateway listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The address as clients write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises PortInUse."""
    stop = told_to_stop()
    async with serving(settings):
        await stop.wait()
        log.info("stopping")


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Address]:
    """Serve while the block runs; at its end stop in order: readiness, new work, what is in flight, connections.

    Raises PortInUse.
    """
    link = Link(settings.nats, settings.secrets)
    keys = KeyPool(
        settings.nats,
        lambda: link.directory,
        limit=settings.keys,
        idle_s=settings.key_idle_s,
        open_timeout_s=settings.open_timeout_s,
    )
    intake = Intake(
        pause_s=settings.body_pause_s,
        total_s=settings.body_s,
        body_bytes=settings.body_bytes,
        bodies_bytes=settings.bodies_bytes,
    )
    guard = Guard(head_s=settings.head_s, idle_s=settings.idle_s, limit=settings.connections)
    detached = Detached(settings.detached)
    leaving, stopping = asyncio.Event(), asyncio.Event()

    def is_ready() -> bool:
        return not leaving.is_set()

    def is_serving() -> bool:
        return not stopping.is_set()

    pages = Pages(link, keys, is_ready)
    faces = Faces(
        MeshFace(keys, intake),
        StreamFace(keys, intake, settings.beat_s),
        AlgorithmiaFace(keys, intake, detached),
        pages,
    )
    app = build_app(faces, guard, is_serving)
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=settings.idle_s,
        lingering_time=_LINGER_S,
        shutdown_timeout=_CANCEL_S,
        logger=_SILENT,
    )
    await runner.setup()
    tasks: list[asyncio.Task[None]] = []
    try:
        site = await _listen(runner, settings.host, settings.port)
        address = Address(settings.host, runner.addresses[0][1])
        assert runner.server is not None
        loop = asyncio.get_running_loop()
        tasks += [
            loop.create_task(link.run(), name="link"),
            loop.create_task(keys.run(), name="keys"),
            loop.create_task(guard.run(runner.server), name="guard"),
            loop.create_task(show_ready(lambda: is_ready() and link.is_up), name="readiness"),
        ]
        _tell(settings.address_file, address)
        log.info("listening", host=address.host, port=address.port)
        try:
            with watch(guard, keys, link):
                yield address
        finally:
            # Whoever shares calls out between gateways learns of it before any call is refused.
            leaving.set()
            await asyncio.sleep(settings.leave_s)
            stopping.set()
            settings.address_file.unlink(missing_ok=True)
            await site.stop()
            with suppress(TimeoutError):
                async with asyncio.timeout(settings.grace_s):
                    await guard.wait_idle()
    finally:
        await detached.close()
        await runner.cleanup()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        log.info("stopped")


async def _listen(runner: web.AppRunner, host: str, port: int) -> web.TCPSite:
    site = web.TCPSite(runner, host, port, backlog=512, reuse_address=True)
    try:
        await site.start()
    except OSError as error:
        raise PortInUse(
            f"the gateway cannot listen on {host}:{port} ({error.strerror or error}); another program may use that "
            "port: stop it, choose another, or let the system choose one with port 0"
        ) from error
    return site


def _tell(path: Path, address: Address) -> None:
    """Write where we listen, all of it or nothing."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps({"host": address.host, "port": address.port, "pid": os.getpid()}) + "\n")
    draft.replace(path)
