"""Leaving a call with the stream of parked calls, until an instance takes it.

Everybody who meets "no responders" does it: a caller, an instance that is full, a stage whose next one is down.
"""

import math
from collections.abc import Sequence
from typing import Final

from algomesh import errors
from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection
from algomesh_broker.names import VersionId
from algomesh_observability.tracing import beneath

UNAVAILABLE: Final = 10008  # there is no stream: a server that has just started has none until the launcher saw to it
RETRY_S: Final = 0.1
_SUBJECT_FULL: Final = 10077


def park(
    connection: Connection,
    subject: str,
    envelope: bytes,
    ticket: str,
    left_s: float,
    *,
    version: VersionId,
    demander: str,
    call: messages.Call,
    stages: Sequence[str] = (),
) -> None:
    """Park the `call` that `envelope` is, for `left_s` seconds, and say that somebody waits for `version`.

    `subject` is that of the live call or hop, `stages` are the versions its pipeline goes on to. The stream's answer
    comes to `ticket`. Raises PayloadTooLarge.
    """
    headers = {"Nats-TTL": f"{max(1, math.ceil(left_s))}s"}
    connection.publish(subjects.park(subject), envelope, ticket, headers)
    run = call.run if call.at < 0 else f"{call.run}-{call.at}"
    demand = messages.Demand(
        run=run,
        root=call.root,
        parent=call.parent,
        root_caller=call.root_caller,
        attempt=call.attempt,
        stages=list(stages),
        traceparent=beneath(call.traceparent, run, call.root),
    )
    connection.publish(subjects.demand(version, demander), codec.encode(demand))


def stream_refusal(data: bytes | memoryview) -> tuple[int, str] | None:
    """The err_code and the description of a PubAck that is a refusal, else None."""
    ack = codec.decode_puback(data)
    return None if ack.error is None else (ack.error.err_code, ack.error.description)


def refused_parking(err_code: int, description: str, stage: str) -> errors.MeshError:
    """What a refused PubAck means to the caller."""
    if err_code == _SUBJECT_FULL:
        return errors.Overloaded(
            "1,000 of your calls wait for it already; send fewer at once, or try again later", stage=stage
        )
    return errors.Overloaded(f"the mesh cannot park the call: {description}; try again later", stage=stage)
