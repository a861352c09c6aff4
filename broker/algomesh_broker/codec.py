"""One Encoder, and one Decoder per message type, made once.

`encode` never fails on our own Structs; a decoder raises BadMessage, whatever msgspec,
deep nesting (RecursionError) or bad UTF-8 (UnicodeDecodeError) make of foreign bytes.
"""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from algomesh_broker import messages
from algomesh_broker.errors import BadMessage

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

encode = msgspec.msgpack.Encoder().encode


def _decoder(type_: type[T] | object, name: str) -> Callable[[Buffer], T]:
    """What reads one message type: it returns the Struct or raises BadMessage."""
    read = msgspec.msgpack.Decoder(type_).decode

    def decode(data: Buffer) -> T:
        try:
            return read(data)  # type: ignore[no-any-return]  # Decoder of a union is untyped
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
            raise BadMessage(f"not a {name} message: {error}") from error

    return decode


class PubAckError(msgspec.Struct, frozen=True):
    """Why a stream did not take a message."""

    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct, frozen=True):
    """JetStream's answer to a publish, as JSON (ADR-1 of the NATS architecture)."""

    error: PubAckError | None = None
    seq: int = 0


_puback = msgspec.json.Decoder(PubAck)


def decode_puback(data: Buffer) -> PubAck:
    """Read JetStream's answer to a publish. Raises BadMessage."""
    try:
        return _puback.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadMessage(f"not a PubAck: {error}") from error


decode_call: Callable[[Buffer], messages.Call] = _decoder(messages.Call, "call")
decode_reply: Callable[[Buffer], messages.Reply] = _decoder(messages.Reply, "reply")
decode_control: Callable[[Buffer], messages.Control] = _decoder(messages.Control, "control")
decode_demand: Callable[[Buffer], messages.Demand] = _decoder(messages.Demand, "demand")
decode_fleet: Callable[[Buffer], messages.Fleet] = _decoder(messages.Fleet, "fleet")
decode_host_beat: Callable[[Buffer], messages.HostBeat] = _decoder(messages.HostBeat, "host beat")
decode_lease: Callable[[Buffer], messages.InstanceLease] = _decoder(messages.InstanceLease, "lease")
decode_sights: Callable[[Buffer], messages.Sights] = _decoder(messages.Sights, "sights")
decode_machine: Callable[[Buffer], messages.Machine] = _decoder(messages.Machine, "machine")
decode_holds: Callable[[Buffer], messages.Holds] = _decoder(messages.Holds, "holds")
decode_events: Callable[[Buffer], messages.Events] = _decoder(messages.Events, "events")
decode_ask: Callable[[Buffer], messages.Ask] = _decoder(messages.Ask, "ask")
decode_answer: Callable[[Buffer], messages.Answer] = _decoder(messages.Answer, "answer")
decode_entry: Callable[[Buffer], messages.AlgorithmEntry] = _decoder(messages.AlgorithmEntry, "directory entry")
