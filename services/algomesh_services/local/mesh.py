"""The whole mesh on one machine: `async with Mesh(options) as mesh:` is `algomesh up` without its words.

Two servers, unless others are named, and the five programs, as supervised children in this order: nats-server,
PostgreSQL, registry, ledger, prewarmer, launcher, gateway. The gateway's and the server's addresses stay the same for
as long as the mesh lives, whatever dies; the server's also from one `up` to the next. It must run on the event loop of
the main thread, in a process that starts no other children (supervisor.py says why).
"""

import errno
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from algomesh_broker.authorization import authorization_config
from algomesh_broker.credentials import ensure_admin_key, ensure_secrets, read_admin_key
from algomesh_broker.errors import Unauthenticated
from algomesh_broker.program import Program
from algomesh_broker.server import NatsConfig, NatsServer
from algomesh_services.local.errors import ChildFailed, LocalError, PortInUse, StateError, StateFull
from algomesh_services.local.foreign import check_nats, check_postgres
from algomesh_services.local.metrics_targets import choose_metrics
from algomesh_services.local.ports import check_port
from algomesh_services.local.postgres import Postgres
from algomesh_services.local.programs import NAMES, mesh_programs
from algomesh_services.local.running import RunningMesh
from algomesh_services.local.state import StateDirectory
from algomesh_services.local.supervisor import Supervisor

NATS_PORT: Final = 4222
HOST: Final = "127.0.0.1"
# The whole stop; a little less than the five seconds that are promised.
_STOP_WITHIN_S: Final = 4.5
# Whoever starts the mesh may have these set for its own calls; the mesh's children and their user code may not.
_PRIVATE: Final = ("ALGOMESH_API_KEY", "ALGOMESH_URL", "PGPASSWORD")


class KeyRefused(LocalError):
    """The text given as the administrator's key cannot be a key."""

    code = "key_refused"


@dataclass(frozen=True, kw_only=True)
class MeshOptions:
    """What `algomesh up` was told.

    `port` is the gateway's, 0 for any. `key` becomes the administrator's key; `nats` and `postgres` are addresses of
    servers that are not ours.
    """

    state: Path | None = None
    port: int = 8080
    key: str | None = None
    nats: str | None = None
    postgres: str | None = None


class Mesh:
    """A mesh on this machine; what it says of itself is true inside the `async with` block."""

    def __init__(self, options: MeshOptions) -> None:
        self.options = options
        self.state = StateDirectory(options.state)
        self.gateway = ""
        self.nats = ""
        self.key = ""
        self.is_new_key = False
        self.metrics: dict[str, str] = {}
        self._supervisor: Supervisor | None = None
        self._stack = AsyncExitStack()

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the children that run now, by name."""
        return {} if self._supervisor is None else self._supervisor.pids

    @property
    def restarts(self) -> dict[str, int]:
        """How often each child was started again."""
        return {} if self._supervisor is None else self._supervisor.restarts

    async def __aenter__(self) -> Self:
        """Start everything, and return when all of it is ready.

        Raises LocalError: what is wrong with the state directory, a port, a server or a program, and what to do.
        """
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        options, state = self.options, self.state
        self._stack.enter_context(state)
        for name in _PRIVATE:
            os.environ.pop(name, None)
        self._make_secrets()
        port = check_port(HOST, _checked(options.port))
        self.gateway = f"http://{HOST}:{port}"
        nats_url = None if options.nats is None else await check_nats(options.nats, state.secrets, state.path)
        dsn = None if options.postgres is None else await check_postgres(options.postgres, state.run)

        for is_last_try in (False, False, True):
            try:
                await self._supervise(self._programs(port, nats_url, dsn))
                break
            except ChildFailed as error:
                # Between looking for a free port and listening on it, somebody else may have taken it.
                is_server_port = error.name == NatsServer.name and error.code == "port_in_use"
                if is_last_try or not is_server_port:
                    raise
        self._announce()

    def _programs(self, port: int, nats_url: str | None, dsn: str | None) -> list[Program]:
        """Every child, in the order of the start."""
        state = self.state
        servers: list[Program] = []
        if nats_url is None:
            server = self._nats_server()
            nats_url = server.url
            servers.append(server)
        if dsn is None:
            database = Postgres(state.postgres, log=state.logs / "postgres.log", pass_fds=(state.lock_fd,))
            dsn = database.dsn
            servers.append(database)
        self.nats = nats_url
        environment = {
            "ALGOMESH_NATS": nats_url,
            "ALGOMESH_STATE": str(state.path),
            "ALGOMESH_GATEWAY_HOST": HOST,
            "ALGOMESH_GATEWAY_PORT": str(port),
            "PYTHONUNBUFFERED": "1",
        }
        try:
            self.metrics = choose_metrics(state.run, NAMES)
        except OSError as error:
            raise _as_state_error(error, state.run) from error
        programs = mesh_programs(environment, state.logs, postgres=dsn, metrics=self.metrics, pass_fds=(state.lock_fd,))
        return [*servers, *programs]

    def _nats_server(self) -> NatsServer:
        state = self.state
        config = NatsConfig(
            store_dir=state.nats,
            runtime_dir=state.run / "nats",
            port=_nats_port(state.run / "nats.port", prefers_usual=self.options.port != 0),
            log=state.logs / "nats-server.log",
            extra=authorization_config(state.secrets),
        )
        return NatsServer(config)

    def _make_secrets(self) -> None:
        folder = self.state.secrets
        try:
            ensure_secrets(folder)
            known = read_admin_key(folder)
            self.key = ensure_admin_key(folder, self.options.key)
            self.is_new_key = known is None and self.options.key is None
        except Unauthenticated as error:
            raise KeyRefused(f"--key: {error}") from error
        except OSError as error:
            raise _as_state_error(error, folder) from error

    async def _supervise(self, programs: Sequence[Program]) -> None:
        supervisor = Supervisor(programs, stop_within_s=_STOP_WITHIN_S)
        self._supervisor = supervisor
        await self._stack.enter_async_context(supervisor)

    def _announce(self) -> None:
        """Let a second terminal find us."""
        path = str(self.state.path)
        metrics = {name: f"http://{address}/metrics" for name, address in self.metrics.items()}
        running = RunningMesh(gateway=self.gateway, nats=self.nats, state=path, pid=os.getpid(), metrics=metrics)
        try:
            running.write()
        except OSError as error:
            raise _as_state_error(error, self.state.run) from error
        self._stack.callback(running.remove)


def _checked(port: int) -> int:
    if not 0 <= port <= 65535:
        raise LocalError(f"--port {port} is not a port; choose one up to 65535, or 0 for any")
    return port


def _nats_port(memory: Path, *, prefers_usual: bool) -> int:
    """The port that this state's server had before, else the usual one, else any; whichever is free, noted down."""
    wanted = [NATS_PORT] if prefers_usual else []
    with suppress(OSError, ValueError):
        wanted.insert(0, int(memory.read_text()))
    for port in (*wanted, 0):
        try:
            found = check_port(HOST, port)
        except (PortInUse, OverflowError):
            continue
        try:
            memory.write_text(f"{found}\n")
        except OSError as error:
            raise _as_state_error(error, memory) from error
        return found
    raise LocalError(f"no port on {HOST} is free for nats-server")


def _as_state_error(error: OSError, path: Path) -> StateError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StateFull(path)
    return StateError(path, f"{path} cannot be written: {error.strerror}; choose another directory with --state")
