"""Hears that somebody waits: `demand.<owner>.<name>.<version>.<caller>`, sent beside every parked call."""

from collections.abc import Callable

import structlog

from algomesh_broker import subjects
from algomesh_broker.connection import Connection, Message, Subscription
from algomesh_broker.errors import BadName
from algomesh_broker.names import VersionId

log = structlog.get_logger("algomesh.launcher")


async def hear_demand(
    connection: Connection,
    on_demand: Callable[[VersionId], None],
    on_body: Callable[[VersionId, bytes | memoryview], None] | None = None,
) -> Subscription:
    """Call `on_demand` for every demand from now on. Raises Forbidden, Unreachable.

    The subject says all there is to know; the body is for the pre-warmer, and for `on_body`, which comes first.
    """

    def hear(message: Message) -> None:
        tokens = message.subject.split(".")
        try:
            version = VersionId.of_tokens(*tokens[1:4])
        except (BadName, TypeError) as error:
            log.warning("demand_unreadable", subject=message.subject, error=str(error))
            return
        if on_body is not None:
            on_body(version, message.data)
        on_demand(version)

    return await connection.subscribe(subjects.ALL_DEMAND, hear)
