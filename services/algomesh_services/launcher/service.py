"""The program `algomesh serve launcher`: connects its parts, and ends them in order.

It starts before or after its servers and the registry, in any order, and says `ready` in its log once calls can start
instances. On SIGTERM: no new instances → instances drain (grace) → they are killed → goodbye → connections close.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection
from algomesh_broker.credentials import program_identity, public_key, read_route_key, read_seed, store_identity
from algomesh_broker.directory import Directory
from algomesh_broker.errors import BrokerError
from algomesh_broker.identity import sign_instance_token
from algomesh_broker.names import VersionId
from algomesh_broker.streams import JetStreamAdmin
from algomesh_services.asking import Programs
from algomesh_services.environment import BadSetting
from algomesh_services.launcher import isolation
from algomesh_services.launcher.bundles import Bundles
from algomesh_services.launcher.claims import Claims
from algomesh_services.launcher.control import Control
from algomesh_services.launcher.demand import hear_demand
from algomesh_services.launcher.driver import Driver, KeepsByVersion, LaunchFailed
from algomesh_services.launcher.externals import Externals
from algomesh_services.launcher.fleet import Fleet
from algomesh_services.launcher.holds import hear_holds
from algomesh_services.launcher.leases import Leases
from algomesh_services.launcher.machine import MachineReport
from algomesh_services.launcher.metrics import watch
from algomesh_services.launcher.parked_ages import ParkedAges
from algomesh_services.launcher.parking import Parking
from algomesh_services.launcher.process_driver import ProcessDriver
from algomesh_services.launcher.provision import provider
from algomesh_services.launcher.requests import PROGRAM, Requests
from algomesh_services.launcher.results import Results
from algomesh_services.launcher.settings import Settings
from algomesh_services.launcher.start_spans import StartSpans
from algomesh_services.lifecycle import Errors, Life, retried, told_to_stop
from algomesh_services.readiness import show_ready

log = structlog.get_logger("algomesh.launcher")

T = TypeVar("T")

BEAT_S = 1.0
_CLOSE_S = 2.0
_RETRY_S = 0.2
_KEEP_WARM_S = 60.0


async def run(settings: Settings) -> None:
    """Be a launcher until SIGTERM or SIGINT. Raises OSError when the state directory cannot be used."""
    await serve(settings, told_to_stop())


async def serve(
    settings: Settings,
    stopping: asyncio.Event,
    *,
    driver: Driver | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Be a launcher until `stopping` is set; `on_ready` is called once calls can start instances. Raises OSError."""
    life = Life(PROGRAM, stopping, on_ready)
    # Should it hang in the end, its driver kills what is left.
    await life.live(_serve(settings, driver, life), grace_s=settings.stop_s + _CLOSE_S)
    log.info("stopped", launcher=settings.launcher)


async def make_driver(settings: Settings) -> Driver:
    """The driver that is set; `process` is as well isolated as this machine allows. Raises OSError, BadSetting."""
    settings.versions.mkdir(parents=True, exist_ok=True)
    settings.logs.mkdir(parents=True, exist_ok=True)
    if settings.driver == "docker":
        return _make_docker_driver(settings)
    found = await isolation.prepare(hidden=[settings.state], readable=[settings.versions])
    log.info("isolation_chosen", level=found.level, reason=found.reason)
    return ProcessDriver(isolation=found, environment=settings.instance_environment)


def _make_docker_driver(settings: Settings) -> Driver:
    try:
        from algomesh_services.launcher.docker_driver import DockerDriver
    except ImportError as error:
        raise BadSetting(f"ALGOMESH_DRIVER=docker needs `pip install algomesh[docker]`: {error}") from error
    return DockerDriver(settings.docker, state=settings.state, launcher=settings.launcher)


async def _serve(settings: Settings, given: Driver | None, life: Life) -> None:
    async with contextlib.AsyncExitStack() as stack:
        # It takes a moment: meanwhile the servers are looked for.
        making = asyncio.create_task(_given(given) if given is not None else make_driver(settings), name="make driver")
        stack.callback(making.cancel)
        servers = await _reach(settings, stack)
        connection, parking, bundles = servers.connection, servers.parking, servers.bundles
        driver = await making
        await stack.enter_async_context(driver)
        if isinstance(driver, KeepsByVersion):
            driver.know_published(_digests_in(servers.directory))
        leases = Leases()
        externals = Externals(
            settings.launcher,
            leases,
            parking,
            signers=[public_key(servers.seed), servers.route_key],
            publish=connection.publish,
            is_connected=lambda: connection.is_connected,
        )
        fleet = Fleet(
            settings,
            driver,
            publish=connection.publish,
            sign=lambda version, instance: sign_instance_token(version, instance, servers.seed),
            prepare=provider(bundles, parking),
            route_key=servers.route_key,
            leases=leases,
        )
        bundles.in_use = fleet.digests
        control = Control(
            settings, fleet, parking, bundles,
            publish=connection.publish, is_published=_published_in(servers.directory), externals=externals,
        )  # fmt: skip
        machine = MachineReport(
            settings.launcher, fleet, publish=connection.publish, is_connected=lambda: connection.is_connected
        )
        requests = Requests(connection, fleet, control, settings.logs, externals)
        ages = ParkedAges(servers.admin, parking)
        stack.enter_context(watch(fleet, externals, ages, connection, settings.capacity))

        async with asyncio.TaskGroup() as tasks:
            host = _shared_memory(settings, servers.claims)
            working = [
                tasks.create_task(_beat(connection, settings.launcher, host), name="beat"),
                tasks.create_task(servers.claims.keep_swept(), name="sweep claims"),
                tasks.create_task(_keep_warm(driver), name="warm"),
                tasks.create_task(control.run(), name="control"),
                tasks.create_task(machine.run(), name="machine"),
                tasks.create_task(ages.run(), name="ages of parked calls"),
                tasks.create_task(externals.run(), name="externals"),
            ]
            _follow_directory(servers.directory, control)
            _restore_after_reconnect(servers.admin.connection, tasks, control, servers.claims, servers.results)
            await requests.open()
            await externals.open(connection)
            await leases.hear(connection)
            spans = fleet.spans = StartSpans.if_on()
            demand = await hear_demand(connection, control.on_demand, None if spans is None else spans.hear)
            holds = await hear_holds(connection, control.on_holds)
            log.info(
                "ready",
                program=PROGRAM,
                launcher=settings.launcher,
                memory_bytes=settings.capacity.memory_bytes,
                gpus=len(settings.capacity.gpus),
            )
            working.append(tasks.create_task(show_ready(lambda: connection.is_connected), name="readiness"))
            life.begin()
            await life.stopping.wait()

            log.info("stopping", program=PROGRAM, instances=len(fleet.instances))
            control.close()
            demand.leave()
            holds.leave()
            await fleet.close(settings.stop_s)
            await requests.close()
            for task in working:
                task.cancel()
        machine.say()
        # Only now: who hears it sends again what its instances were doing.
        with contextlib.suppress(BrokerError):
            connection.publish(subjects.host_beat(settings.launcher), _host_beat(settings.launcher, is_alive=False))
            await connection.flush(1.0)


@dataclass(frozen=True)
class _Servers:
    """What a launcher needs of others before it can begin."""

    seed: bytes
    route_key: str
    connection: Connection
    admin: JetStreamAdmin
    parking: Parking
    claims: Claims
    results: Results
    directory: Directory
    bundles: Bundles


async def _reach(settings: Settings, stack: contextlib.AsyncExitStack) -> _Servers:
    """Wait until everything is there; `stack` closes it. Raises OSError when the folder of versions cannot be used."""
    seed = await _until_there("secrets", lambda: asyncio.to_thread(read_seed, settings.secrets, PROGRAM), OSError)
    route_key = await _until_there("secrets", lambda: asyncio.to_thread(read_route_key, settings.secrets), OSError)
    identity, store = program_identity(settings.secrets, PROGRAM), store_identity(settings.secrets, PROGRAM)
    connection = await _until_there("nats", lambda: Connection.open(settings.nats_url, identity, name=PROGRAM))
    stack.push_async_callback(connection.close)
    admin = await _until_there("nats", lambda: JetStreamAdmin.open(settings.nats_url, store))
    stack.push_async_callback(admin.close)
    parking, claims, results = Parking(admin), Claims(admin), Results(admin)
    for ensure in (parking.ensure, claims.ensure, results.ensure):
        await _until_there("jetstream", ensure)
    directory = await _until_there("directory", lambda: Directory.open(connection))
    stack.push_async_callback(directory.close)
    bundles = Bundles(Programs(connection), settings.versions, settings.cache_bytes)
    await bundles.open()
    stack.push_async_callback(bundles.close)
    return _Servers(seed, route_key, connection, admin, parking, claims, results, directory, bundles)


def _follow_directory(directory: Directory, control: Control) -> None:
    def changed(algorithm: str) -> None:
        owner, _, name = algorithm.partition("/")
        control.on_entry(directory.entry(algorithm) or messages.AlgorithmEntry(owner=owner, name=name, versions=[]))

    for entry in directory.entries():
        control.on_entry(entry)
    directory.on_change.append(changed)


def _published_in(directory: Directory) -> Callable[[VersionId], bool]:
    """Whether an algorithm's version is in the directory; named pipelines have no instances, and do not count."""

    def is_published(version: VersionId) -> bool:
        entry, number = directory.entry(version.algorithm), str(version.version)
        return entry is not None and any(each.version == number and not each.pipeline for each in entry.versions)

    return is_published


def _digests_in(directory: Directory) -> Callable[[], set[str]]:
    """What versions that are in the directory were made of."""
    return lambda: {version.digest for entry in directory.entries() for version in entry.versions}


def _restore_after_reconnect(
    store: Connection, tasks: asyncio.TaskGroup, control: Control, claims: Claims, results: Results
) -> None:
    """A server that restarted has lost the stream, and with it what the instances pull from."""

    def reconnected() -> None:
        tasks.create_task(_until_there("stream", control.restore), name="restore")
        tasks.create_task(_until_there("stream", claims.ensure), name="restore claims")
        tasks.create_task(_until_there("stream", results.ensure), name="restore results")

    store.on_reconnect.append(reconnected)


def _shared_memory(settings: Settings, claims: Claims) -> str:
    """What instances see of this machine's shared memory: those in containers see nothing of it."""
    return "" if settings.driver == "docker" else claims.host


async def _given(driver: Driver) -> Driver:
    return driver


async def _beat(connection: Connection, launcher: str, host: str) -> None:
    alive = _host_beat(launcher, is_alive=True, host=host)
    while True:
        if connection.is_connected:  # an old beat that waited for a server would tell nothing
            connection.publish(subjects.host_beat(launcher), alive)
        await asyncio.sleep(BEAT_S)


async def _keep_warm(driver: Driver) -> None:
    """Keep the zygote that most instances are forked from, though nobody has needed it for a while."""
    is_failing = False
    while True:
        try:
            await driver.warm(frozenset())
            is_failing = False
        except LaunchFailed as error:
            if not is_failing:
                log.warning("zygote_missing", error=str(error))
            is_failing = True
        await asyncio.sleep(_KEEP_WARM_S if not is_failing else BEAT_S)


async def _until_there(what: str, attempt: Callable[[], Awaitable[T]], away: Errors = BrokerError) -> T:
    return await retried(
        attempt,
        away,
        lambda said: log.warning("waiting_for", what=what, error=said),
        first_s=_RETRY_S,
        last_s=_RETRY_S,
    )


def _host_beat(launcher: str, *, is_alive: bool, host: str = "") -> bytes:
    return codec.encode(messages.HostBeat(launcher=launcher, alive=is_alive, host=host))
