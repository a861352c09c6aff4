"""Loggers of the library: the program's own configuration, and nothing below a warning without one."""

import logging
from collections.abc import Iterator

import pytest
import structlog

from algomesh_observability.logger import get_logger


@pytest.fixture(autouse=True)
def _structlog_as_it_was() -> Iterator[None]:  # other tests of this process may have configured it
    is_configured, config = structlog.is_configured(), structlog.get_config()
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    if is_configured:
        structlog.configure(**config)


def test_without_structlog_events_go_to_the_programs_logging(caplog: pytest.LogCaptureFixture) -> None:
    log = get_logger("algomesh.test")
    with caplog.at_level(logging.INFO):
        log.debug("tried")
        log.info("reconnected", url="nats://127.0.0.1")
        log.bind(run="r1").warning("call_ignored", size=3)

    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("algomesh.test", "INFO", "reconnected url='nats://127.0.0.1'"),
        ("algomesh.test", "WARNING", "call_ignored run='r1' size=3"),
    ]
    assert {record.filename for record in caplog.records} == {"test_logger.py"}


def test_an_exception_brings_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        get_logger("algomesh.test").exception("callback_failed")

    assert "ValueError: broken" in caplog.text
    assert caplog.records[0].levelname == "ERROR"


def test_a_configuration_that_comes_later_is_followed(caplog: pytest.LogCaptureFixture) -> None:
    log = get_logger("algomesh.test")
    heard: list[tuple[str, dict[str, object]]] = []

    def hear(_: object, level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        heard.append((level, dict(event)))
        raise structlog.DropEvent

    structlog.configure(processors=[hear])
    log.bind(run="r1").debug("tried", attempt=2)

    assert heard == [("debug", {"run": "r1", "attempt": 2, "event": "tried"})]
    assert caplog.records == []
