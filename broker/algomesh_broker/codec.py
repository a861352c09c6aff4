"""One Encoder, and one Decoder per message type, made once.

`encode` never fails on our own Structs; a decoder raises BadMessage, whatever msgspec,
deep nesting (RecursionError) or bad UTF-8 (UnicodeDecodeError) make of foreign bytes.
"""

from typing import Generic, TypeVar

import msgspec

from algomesh_broker import messages
from algomesh_broker.errors import BadMessage

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

encode = msgspec.msgpack.Encoder().encode


class Decoder(Generic[T]):
    """Reads one message type. Calling it returns the Struct or raises BadMessage."""

    def __init__(self, type_: type[T] | object, name: str) -> None:
        self._decode = msgspec.msgpack.Decoder(type_).decode
        self._name = name

    def __call__(self, data: Buffer) -> T:
        """Decode `data`. Raises BadMessage."""
        try:
            return self._decode(data)  # type: ignore[no-any-return]  # Decoder of a union is untyped
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
            raise BadMessage(f"not a {self._name} message: {error}") from error


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


decode_call: Decoder[messages.Call] = Decoder(messages.Call, "call")
decode_reply: Decoder[messages.Reply] = Decoder(messages.Reply, "reply")
decode_control: Decoder[messages.Control] = Decoder(messages.Control, "control")
decode_demand: Decoder[messages.Demand] = Decoder(messages.Demand, "demand")
decode_fleet: Decoder[messages.Fleet] = Decoder(messages.Fleet, "fleet")
decode_host_beat: Decoder[messages.HostBeat] = Decoder(messages.HostBeat, "host beat")
decode_events: Decoder[messages.Events] = Decoder(messages.Events, "events")
decode_ask: Decoder[messages.Ask] = Decoder(messages.Ask, "ask")
decode_answer: Decoder[messages.Answer] = Decoder(messages.Answer, "answer")
decode_entry: Decoder[messages.AlgorithmEntry] = Decoder(messages.AlgorithmEntry, "directory entry")
