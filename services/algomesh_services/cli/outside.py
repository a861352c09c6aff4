"""`serve --exec` and `serve --http`: a program of the user's own as an algorithm, from this terminal, until Ctrl-C."""

import asyncio
import signal
import sys
from typing import Any, Final, Protocol, Self, cast

import typer

from algomesh.adapter import attached
from algomesh.adapter.lines import Lines
from algomesh.adapter.per_call import Gives, PerCall
from algomesh.adapter.program import split_command
from algomesh.errors import BadInput, BadProject, BadReference
from algomesh.foreign import describe_foreign
from algomesh_broker.errors import BadName
from algomesh_broker.names import VersionId
from algomesh_broker.platform import Manifest
from algomesh_observability.logs import configure
from algomesh_services.cli.address import find_address
from algomesh_services.cli.output import note
from algomesh_services.cli.session import errors_as_lines, open_connection

KINDS: Final = ("text", "json", "binary")


class Way(Protocol):
    """How the program is spoken to."""

    async def __aenter__(self) -> Self:
        """Begin."""
        ...

    async def __aexit__(self, *_: object) -> None:
        """Leave nothing behind."""
        ...

    async def run(self, value: Any) -> Any:
        """One call."""
        ...


def serve(
    *,
    command: str | None,
    url: str | None,
    as_: str | None,
    per_call: bool,
    takes: str,
    gives: str,
    concurrency: int,
    timeout: str,
    description: str,
) -> None:
    """Run until Ctrl-C or SIGTERM, then finish what is under way. What cannot be ends with one line."""
    configure("serve", level="warning", stream=sys.stderr)
    with errors_as_lines():
        if (command is None) == (url is None):
            raise typer.BadParameter("name one program: --exec 'COMMAND' or --http URL", param_hint="--exec / --http")
        if per_call and command is None:
            raise typer.BadParameter("it goes with --exec", param_hint="--per-call")
        if as_ is None:
            raise typer.BadParameter("say under which name, like --as me/words/1.0.0", param_hint="--as")
        for option, kind in (("--takes", takes), ("--gives", gives)):
            if kind and kind not in KINDS:
                raise typer.BadParameter(f"{kind!r} is none of {', '.join(KINDS)}", param_hint=option)
        what = description or f"{'a program' if url is None else 'an HTTP service'} outside the mesh"
        manifest = _manifest(as_, takes, gives, concurrency, timeout, what)
        way = _way(command, url, per_call, gives)
        asyncio.run(_serve(manifest, way))


def _manifest(as_: str, takes: str, gives: str, concurrency: int, timeout: str, description: str) -> Manifest:
    try:
        version = VersionId.parse(as_)
    except BadName as error:
        raise BadReference(f"--as {as_!r}: {error}; name a version too, like me/words/1.0.0") from error
    # It is not started ahead, since nobody but its user can start it.
    options = {"concurrency": concurrency, "timeout": timeout, "prewarm": False, "min_instances": 0}
    try:
        return describe_foreign(
            name=version.algorithm, version=str(version.version), options=options, description=description,
            takes=takes, gives=gives, command=[],
        )  # fmt: skip
    except BadProject as error:
        raise BadInput(error.message.partition(": ")[2]) from error


def _way(command: str | None, url: str | None, per_call: bool, gives: str) -> Way:
    if url is not None:
        try:
            from algomesh.adapter.posting import Posting
        except ModuleNotFoundError as error:
            raise BadInput(f"--http needs {error.name}: pip install 'algomesh[http]'") from error
        return Posting(url)
    assert command is not None
    words = split_command(command)
    return PerCall(words, cast("Gives", gives)) if per_call else Lines(words)


async def _serve(manifest: Manifest, way: Way) -> None:
    stop = _stop_on_signals()
    address = find_address()
    version = f"{manifest.owner}/{manifest.name}/{manifest.version}"

    def say(instance: str, is_new: bool) -> None:
        note(f"{'published and serving' if is_new else 'serving'} {version} as {instance}; Ctrl-C ends it")

    async with way as program, await open_connection(address, "serve --exec and --http") as connection:
        await attached.serve(connection, address.url, manifest, program.run, stop, on_ready=say)


def _stop_on_signals() -> asyncio.Event:
    """Set by the first SIGINT or SIGTERM; a second one ends everything at once."""
    stop, loop, main = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()
    assert main is not None

    def told() -> None:
        if stop.is_set():
            main.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told)
    return stop
