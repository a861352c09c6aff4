"""What structlog and `logging` write inside an instance."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import pytest
import structlog

from algomesh.context import RunContext, enter, leave
from algomesh.instance import run_logs
from algomesh.transport import Origin
from algomesh_broker.boot import Boot
from algomesh_broker.platform import Options

TRACE = "0af7651916cd43dd8448eb211c80319c"
MINE = logging.getLogger("mine")
RUN = "b7ad6b71692033310123456789abcdef"
BOOT = Boot(
    instance="l-1", launcher="l", owner="me", name="shout", version="1.0.0", folder="/", entry="a:b",
    nats_url="nats://nowhere", token="secret", options=Options(), launched_ns=0,
)  # fmt: skip


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """What stands in for the log; everything global is as before afterwards."""
    before, factory, last = structlog.get_config(), logging.getLogRecordFactory(), logging.lastResort
    yield io.StringIO()
    MINE.handlers.clear()
    logging.lastResort = last
    logging.setLogRecordFactory(factory)
    structlog.configure(**before)


def configure(out: io.StringIO, **environment: str) -> None:
    with redirect_stdout(out):
        run_logs.configure(BOOT, environment)


def warn(text: str, *arguments: str, exc_info: Any = None) -> None:
    """`logging` as it is where nobody has given it a handler; pytest has."""
    assert logging.lastResort is not None
    logging.lastResort.handle(MINE.makeRecord("mine", logging.WARNING, "f", 1, text, arguments, exc_info))


@pytest.fixture
def run() -> Iterator[RunContext]:
    context = RunContext(
        None, Origin(RUN, RUN, "k~me", 0, 1, 1.0, None, f"00-{TRACE}-b7ad6b7169203331-01"), algorithm="me/shout/1.0.0"
    )
    token = enter(context)
    yield context
    leave(token)


def objects(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_json_lines_of_a_run_have_all_its_ids(out: io.StringIO, run: RunContext) -> None:
    configure(out, ALGOMESH_LOG="json")

    run.log.info("counted", words=3)
    structlog.get_logger().warning("odd")
    warn("by %s", "logging")

    ids = {"run": RUN, "algorithm": "me/shout/1.0.0", "instance": "l-1", "trace_id": TRACE}
    counted, odd, plain = objects(out)
    assert counted == {"event": "counted", "level": "info", "words": 3, **ids}
    assert odd == {"event": "odd", "level": "warning", **ids}
    assert {**plain, "timestamp": ""} == {
        "event": "by logging", "level": "warning", "logger": "mine", "timestamp": "", **ids,
    }  # fmt: skip


def test_json_lines_outside_a_run_name_the_instance(out: io.StringIO) -> None:
    configure(out, ALGOMESH_LOG="json")

    structlog.get_logger().info("ready")

    assert objects(out) == [
        {"event": "ready", "level": "info", "algorithm": "me/shout/1.0.0", "instance": "l-1"},
    ]


def test_an_exception_is_one_line_of_json(out: io.StringIO, run: RunContext) -> None:
    configure(out, ALGOMESH_LOG="json")

    try:
        raise ValueError("why")
    except ValueError:
        warn("failed", exc_info=sys.exc_info())
        run.log.exception("failed")

    assert ["ValueError: why" in line["exception"] for line in objects(out)] == [True, True]


def test_plain_lines_do_not_repeat_what_stands_before_them(out: io.StringIO, run: RunContext) -> None:
    configure(out)

    run.log.info("counted", words=3)
    warn("by logging")

    assert out.getvalue().splitlines() == ["event='counted' words=3 level='info'", "by logging"]


def test_who_sets_up_logging_keeps_his_format_and_can_have_the_ids(out: io.StringIO, run: RunContext) -> None:
    configure(out)

    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter("%(levelname)s %(run)s %(trace_id)s %(message)s"))
    MINE.addHandler(handler)
    MINE.warning("hello")

    assert out.getvalue() == f"WARNING {RUN} {TRACE} hello\n"
