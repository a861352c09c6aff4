"""What structlog and `logging` write inside an instance: one line per event, with the ids of the run it is about.

Every line in the log has its run before it (output.py), and its file says algorithm and instance, so a plain line adds
the trace, where there is one. With ALGOMESH_LOG=json a line is an object with all four. What is printed stays as it is,
and so does the format of a program that has set up `logging` by itself: its records have the four as attributes.
"""

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final

import structlog

from algomesh.context import entered
from algomesh_broker.boot import Boot
from algomesh_observability import telemetry, tracing

_IDS: Final = ("run", "algorithm", "instance", "trace_id")


def configure(boot: Boot, environment: Mapping[str, str] = os.environ) -> None:
    """Set up structlog, and what `logging` does where nobody has set it up; call it once sys.stdout is the log."""
    algorithm, instance = f"{boot.owner}/{boot.name}/{boot.version}", boot.instance
    as_json = environment.get("ALGOMESH_LOG", "").strip().lower() == "json"

    def ids() -> dict[str, str]:
        context = entered()
        of_run = {} if context is None else {"run": context.run, "trace_id": _trace_of(context.origin)}
        return {**of_run, "algorithm": algorithm, "instance": instance}

    _configure_structlog(ids, as_json=as_json)
    _configure_logging(ids, as_json=as_json)


def _trace_of(origin: Any) -> str:
    return tracing.read(origin.traceparent, origin.root, origin.run).trace


def _configure_structlog(ids: Callable[[], dict[str, str]], *, as_json: bool) -> None:
    def add_ids(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        found = ids()
        if as_json:
            for name, value in found.items():
                event.setdefault(name, value)
        else:  # what stands before the line already is not said again
            event.pop("run", None)
            if event.get("algorithm") == found["algorithm"]:
                del event["algorithm"]
            if telemetry.active is not None and "trace_id" in found:
                event.setdefault("trace_id", found["trace_id"])
        return event

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            add_ids,
            *([structlog.processors.format_exc_info] if as_json else []),
            structlog.processors.JSONRenderer()
            if as_json
            else structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )


def _configure_logging(ids: Callable[[], dict[str, str]], *, as_json: bool) -> None:
    make = logging.getLogRecordFactory()

    def made(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(*arguments, **named)
        found = ids()
        for name in _IDS:
            setattr(record, name, found.get(name, ""))
        return record

    logging.setLogRecordFactory(made)
    last = logging.StreamHandler(sys.stdout)
    last.setLevel(logging.WARNING)
    last.setFormatter(_Lines(as_json=as_json))
    # Only where nobody has given `logging` a handler, so that `logging.basicConfig` still does what it says.
    logging.lastResort = last


class _Lines(logging.Formatter):
    """A record as one line: plain, or as JSON."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        if self._as_json:
            return json.dumps(_as_object(record), default=str)
        line = super().format(record)
        trace = getattr(record, "trace_id", "")
        return f"{line} trace_id={trace}" if trace and telemetry.active is not None and "\n" not in line else line


def _as_object(record: logging.LogRecord) -> dict[str, str]:
    found = {"event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name}
    found.update({name: value for name in _IDS if (value := getattr(record, name, ""))})
    found["timestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
    if record.exc_info:
        found["exception"] = "".join(traceback.format_exception(*record.exc_info)).rstrip()
    return found
