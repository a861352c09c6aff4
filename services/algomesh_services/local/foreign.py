"""Servers that `up` did not start: whether they are there and usable, said before any program starts.

A password in a DSN would be readable in every child's environment, so it moves into a passfile of mode 0600.
"""

import asyncio
import contextlib
import os
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from algomesh_broker.connection import Connection
from algomesh_broker.credentials import program_identity
from algomesh_broker.errors import BrokerError, Unauthenticated
from algomesh_services.local.errors import LocalError

_WITHIN_S = 5.0


class ForeignServerUnusable(LocalError):
    """A server given with --nats or --postgres cannot be used; `option` says which."""

    code = "foreign_server_unusable"

    def __init__(self, option: str, sentence: str) -> None:
        super().__init__(sentence)
        self.option = option


async def check_nats(url: str, secrets: Path, state: Path) -> str:
    """Return the address if a nats-server is there that knows this mesh's programs. Raises ForeignServerUnusable."""
    address = url if "://" in url else f"nats://{url}"
    try:
        parts = urlsplit(address)
        if parts.scheme not in ("nats", "tls") or not parts.hostname or parts.port == 0:
            raise ValueError(address)
    except ValueError as error:
        raise ForeignServerUnusable("--nats", f"--nats {url!r} is not an address; write nats://host:4222") from error
    try:
        connection = await Connection.open(address, program_identity(secrets, "ledger"), timeout_s=_WITHIN_S)
    except (BrokerError, OSError) as error:
        # A server takes its time to say no, and may be cut off before it has; that it is there, it says at once.
        if isinstance(error, Unauthenticated) or await _greets(parts.hostname or "", parts.port or 4222):
            raise ForeignServerUnusable(
                "--nats",
                f"the nats-server at {address} does not know this mesh; add to its configuration what "
                f"`algomesh nats-config --state {state}` prints, and reload it",
            ) from error
        raise ForeignServerUnusable(
            "--nats", f"no NATS server answers at {address}; start it, or leave out --nats to have one started"
        ) from error
    await connection.close()
    return address


async def _greets(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_WITHIN_S):
            reader, writer = await asyncio.open_connection(host, port)
            greeting = await reader.readline()
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return greeting.startswith(b"INFO ")


async def check_postgres(dsn: str, run: Path) -> str:
    """Return the DSN, its password moved to a passfile in `run`, if a database answers.

    Raises ForeignServerUnusable.
    """
    import asyncpg

    try:
        safe = hide_password(dsn, run / "postgres.passfile")
    except ValueError as error:
        raise ForeignServerUnusable(
            "--postgres", "--postgres is not a DSN; write postgresql://user@host:5432/database"
        ) from error
    shown = _without_query(safe)
    try:
        connection = await asyncpg.connect(safe, timeout=_WITHIN_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        why = str(error) or "it did not answer in time"
        raise ForeignServerUnusable("--postgres", f"PostgreSQL at {shown} cannot be used: {why}") from error
    await connection.close()
    return safe


def hide_password(dsn: str, passfile: Path) -> str:
    """The DSN without its password, which is written to `passfile`. Raises ValueError, OSError."""
    parts = urlsplit(dsn)
    if parts.scheme not in ("postgres", "postgresql"):
        raise ValueError("not a DSN")
    options = dict(parse_qsl(parts.query))
    password = unquote(parts.password) if parts.password is not None else options.pop("password", None)
    if password is None:
        return dsn
    user, _, host = parts.netloc.rpartition("@")
    netloc = f"{user.partition(':')[0]}@{host}" if user else host
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    passfile.unlink(missing_ok=True)
    with os.fdopen(os.open(passfile, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"*:*:*:*:{escaped}\n")
    options["passfile"] = str(passfile)
    return urlunsplit(parts._replace(netloc=netloc, query=urlencode(options)))


def _without_query(dsn: str) -> str:
    return urlunsplit(urlsplit(dsn)._replace(query=""))
