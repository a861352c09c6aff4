"""`serve PROGRAM`: one program of the mesh in this process."""

import asyncio
import importlib
from collections.abc import Coroutine
from typing import Any, Final

import typer

from algomesh_observability.logs import configure
from algomesh_services.cli.output import say_error

PROGRAMS: Final = ("registry", "launcher", "gateway", "ledger")


def serve(program: str) -> None:
    """Run `program` until SIGTERM or SIGINT. A setting that is missing ends it with one line."""
    if program not in PROGRAMS:
        raise typer.BadParameter(f"{program!r} is none of {', '.join(PROGRAMS)}", param_hint="PROGRAM")
    configure(program)
    try:
        settings = importlib.import_module(f"algomesh_services.{program}.settings").Settings.from_environment()
        service = importlib.import_module(f"algomesh_services.{program}.service")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("algomesh"):
            raise
        say_error(f"{program} needs {error.name}, which is not installed: pip install 'algomesh[mesh]'")
        raise typer.Exit(1) from error
    except ValueError as error:  # every program's own word for a setting that is missing or wrong
        say_error(str(error))
        raise typer.Exit(1) from error
    _run(service.run(settings))


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(work)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
