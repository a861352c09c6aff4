"""The loggers of what runs inside a user's program: the SDK, and the connection under it.

A library does not decide where logs go. Where the program has configured structlog, our events pass
through its configuration; elsewhere they go to Python's own `logging`, which the program may have
configured, and which otherwise writes warnings and errors to stderr and nothing else. structlog is
never configured here, nor imported: where rich is installed, that alone takes 0.1 s.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any


def get_logger(name: str) -> "Logger":
    """The logger of a module; what it does with an event is decided at that event, not now."""
    return Logger(name, {})


class Logger:
    """A logger as structlog's: `log.warning("call_ignored", subject=subject)`.

    `debug`, `info`, `warning`, `error`, `exception` (with the traceback of what is being handled), and
    whatever else the program's own structlog logger has, once there is one.
    """

    def __init__(self, name: str, fields: dict[str, Any]) -> None:
        self._name, self._fields = name, fields

    def bind(self, **fields: Any) -> "Logger":
        """A logger that adds these fields to every event."""
        return Logger(self._name, self._fields | fields)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        # Handed out instead of called, so that the place a log line names is the caller's.
        if method.startswith("_"):
            raise AttributeError(method)
        structlog: Any = sys.modules.get("structlog")
        if structlog is not None and hasattr(structlog, "is_configured") and structlog.is_configured():
            return getattr(structlog.get_logger(self._name, **self._fields), method)  # type: ignore[no-any-return]
        return getattr(_Plain(logging.getLogger(self._name), self._fields), method)  # type: ignore[no-any-return]


class _Plain:
    """Events as lines of Python's `logging`: `call_ignored subject='call.me.shout'`."""

    def __init__(self, logger: logging.Logger, fields: dict[str, Any]) -> None:
        self._logger, self._fields = logger, fields

    def debug(self, event: str, **fields: Any) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        self._log(logging.ERROR, event, {"exc_info": True} | fields)

    def _log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if not self._logger.isEnabledFor(level):
            return
        exc_info = fields.pop("exc_info", None)
        line = " ".join([event, *(f"{name}={value!r}" for name, value in (self._fields | fields).items())])
        if not self._logger.hasHandlers():  # Python's last resort prints the bare line
            line = f"{self._logger.name}: {line}"
        self._logger.log(level, "%s", line, exc_info=exc_info, stacklevel=3)
