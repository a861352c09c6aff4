"""Structured logs: events with fields, pretty on a terminal, JSON elsewhere.

Call `configure` once, in a program's main; a library never does. Secrets do not belong in fields;
values of fields whose names say secret are blotted out all the same.
"""

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from algomesh_observability.tracing import inbound

_SECRET_WORDS = ("password", "secret", "token", "api_key", "seed", "authorization")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(program: str, *, level: str = "info", json: bool | None = None, stream: TextIO | None = None) -> None:
    """Set up structlog for this process.

    program: added to every line. level: debug, info, warning or error. json: JSON lines, by default
    wherever `stream` (stderr by default) is not a terminal, and everywhere with ALGOMESH_LOG=json.
    """
    out = stream or sys.stderr
    as_json = not out.isatty() or os.environ.get("ALGOMESH_LOG", "").lower() == "json" if json is None else json
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        # Plain tracebacks: prettier ones print local variables, and a key may be among them.
        else structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_trace,
            _blot_secrets,
            structlog.processors.format_exc_info if as_json else _leave,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS.get(level, logging.INFO)),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(program=program)


def _add_trace(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The trace of the request that the line is about, where there is one."""
    request = inbound()
    if request is not None and request.trace:
        event.setdefault("trace_id", request.trace)
    return event


def _blot_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in event:
        if any(word in name.lower() for word in _SECRET_WORDS):
            event[name] = "***"
    return event


def _leave(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return event
