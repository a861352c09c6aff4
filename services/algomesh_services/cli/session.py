"""Running one command against a mesh: the connection, the loop, and the border where errors become lines."""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import typer

from algomesh.errors import BadReference, MeshError
from algomesh.nats_transport import translate
from algomesh_broker.connection import Connection
from algomesh_broker.directory import Directory
from algomesh_broker.errors import BadName, BrokerError
from algomesh_broker.identity import Identity
from algomesh_broker.names import Reference
from algomesh_services.cli.address import Address, find_address
from algomesh_services.cli.output import say_error

T = TypeVar("T")


@contextlib.contextmanager
def errors_as_lines() -> Iterator[None]:
    """Say what went wrong in one line and end with 1; Ctrl-C ends with 130."""
    from algomesh_broker.program import ProgramError
    from algomesh_services.local.errors import LocalError

    try:
        yield
    except (MeshError, BrokerError, LocalError, ProgramError) as error:
        say_error(str(error))
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        say_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        raise typer.Exit(1) from error


def run(work: Callable[[Connection], Awaitable[T]], *, needs_nats_for: str) -> T:
    """Run `work` over a connection to the mesh, and return what it returns; errors end the process."""

    async def connected() -> T:
        address = find_address()
        async with await open_connection(address, needs_nats_for) as connection:
            return await work(connection)

    quiet_logs()
    with errors_as_lines():
        return asyncio.run(connected())


async def open_connection(address: Address, needs_nats_for: str) -> Connection:
    """Connect. Raises Unauthenticated, Unreachable, BadReference when the address is a gateway's."""
    if not address.is_nats:
        raise BadReference(
            f"`algomesh {needs_nats_for}` speaks to the mesh directly, and ALGOMESH_URL is {address.url}; "
            "set it to the mesh's nats:// address"
        )
    try:
        return await Connection.open(address.url, Identity.of_key(address.key), name="cli")
    except BrokerError as error:
        raise translate(error) from error


async def find_version(connection: Connection, reference: str) -> tuple[str, str]:
    """`owner/name`, and the exact version where the reference names one, else "".

    Raises BadReference, UnknownAlgorithm, UnknownVersion.
    """
    try:
        wanted = Reference.parse(reference)
        async with await Directory.open(connection) as directory:
            version, _ = directory.resolve(wanted)
    except BadName as error:
        raise BadReference(str(error)) from error
    except BrokerError as error:
        raise translate(error) from error
    return wanted.algorithm, str(version.version) if wanted.version else ""


def quiet_logs() -> None:
    """Keep the library's own events off the terminal; a command says in its words what matters."""
    from algomesh_observability.logs import configure

    configure("cli", level="error", stream=sys.stderr)
