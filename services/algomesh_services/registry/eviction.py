"""Closing the connections of a revoked key, through the server's own account.

Without the seed of that account (a foreign server) a revoked key's connections live until their
session ends, and no new one begins; the log says so once.
"""

import asyncio
from typing import Any

import msgspec
import structlog

from algomesh_broker.authorization import ACCOUNT
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import BrokerError

log = structlog.get_logger("algomesh.registry")

_SERVERS_ANSWER_WITHIN_S = 0.25
_PAGE = 1_024
_ASK_S = 2.0


async def close_connections(system: Connection, caller: str) -> int:
    """Close every connection that is `caller`, on every server; return how many. Raises BrokerError."""
    closed = 0
    for server in await _servers(system):
        for cid in await _connections(system, server, caller):
            await _ask(system, f"$SYS.REQ.SERVER.{server}.KICK", {"cid": cid})
            closed += 1
    log.info("connections_closed", caller=caller, count=closed)
    return closed


async def _servers(system: Connection) -> list[str]:
    """The ids of all servers; nobody knows how many there are, so this waits a moment for the last."""
    servers: list[str] = []

    def collect(message: Message) -> None:
        if not message.status:
            servers.append(str(msgspec.json.decode(message.data)["server"]["id"]))

    inbox = f"{system.identity.inbox}.servers"
    subscription = await system.subscribe(inbox, collect)
    try:
        system.publish("$SYS.REQ.SERVER.PING", b"", inbox)
        await asyncio.sleep(_SERVERS_ANSWER_WITHIN_S)
    finally:
        await subscription.leave()
    return servers


async def _connections(system: Connection, server: str, caller: str) -> list[int]:
    found: list[int] = []
    offset = 0
    while True:
        options = {"auth": True, "acc": ACCOUNT, "limit": _PAGE, "offset": offset}
        page = (await _ask(system, f"$SYS.REQ.SERVER.{server}.CONNZ", options))["data"]
        connections: list[dict[str, Any]] = page.get("connections") or []
        found += [
            int(connection["cid"])
            for connection in connections
            if caller in (connection.get("authorized_user"), connection.get("name_tag"))
        ]
        offset += len(connections)
        if not connections or offset >= int(page.get("total", 0)):
            return found


async def _ask(system: Connection, subject: str, body: dict[str, Any]) -> dict[str, Any]:
    message = await system.request(subject, msgspec.json.encode(body), _ASK_S)
    answer: dict[str, Any] = msgspec.json.decode(message.data)
    if error := answer.get("error"):
        raise BrokerError(f"the server refused {subject!r}: {error.get('description', error)}")
    return answer
