"""`serve PROGRAM`: one program of the mesh in this process."""

import asyncio
import importlib
import os
import secrets
from collections.abc import Coroutine
from typing import Any, Final

import structlog

from algomesh_observability import telemetry
from algomesh_observability.logs import configure
from algomesh_observability.metrics_server import metrics_address, serving_metrics
from algomesh_services.cli.output import say_error

log = structlog.get_logger("algomesh.serve")

PROGRAMS: Final = ("registry", "launcher", "gateway", "ledger", "prewarmer")


def serve(program: str) -> None:
    """Run `program` until SIGTERM or SIGINT. A setting that is missing ends it with one line."""
    if program not in PROGRAMS:
        import typer

        raise typer.BadParameter(f"{program!r} is none of {', '.join(PROGRAMS)}", param_hint="PROGRAM")
    configure(program, level=os.environ.get("ALGOMESH_LOG_LEVEL", "").strip().lower() or "info")
    try:
        settings = importlib.import_module(f"algomesh_services.{program}.settings").Settings.from_environment()
        service = importlib.import_module(f"algomesh_services.{program}.service")
        metrics_address()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("algomesh"):
            raise
        say_error(f"{program} needs {error.name}, which is not installed: pip install 'algomesh[mesh]'")
        raise SystemExit(1) from error
    except ValueError as error:  # every program's own word for a setting that is missing or wrong
        say_error(str(error))
        raise SystemExit(1) from error
    try:
        telemetry.configure(f"algomesh-{program}", instance=f"{program}-{secrets.token_hex(4)}")
        _run(_measured(service.run(settings)))
    except Exception as error:
        # Whoever supervises us starts us again; the log keeps what happened.
        log.exception("program_failed", error=_cause(error))
        raise SystemExit(1) from error
    finally:
        telemetry.shut_down()


async def _measured(work: Coroutine[Any, Any, None]) -> None:
    async with serving_metrics():
        await work


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(work)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)


def _cause(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
