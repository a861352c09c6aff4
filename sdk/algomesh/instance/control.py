"""What a launcher and its zygote say to each other over their socket.

The socket is a SOCK_SEQPACKET pair: one message, one packet, one sender. An order to fork carries two file descriptors
(the log, the watch page) and three parts: a head, the child's settings, and the boot record. Only the head may be
turned into Python objects in the zygote; the other two hold credentials, are read in the child and wiped in the zygote,
so that the next child does not find them in the memory it inherits. Only the standard library is imported.
"""

import array
import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

MAX_ORDER_BYTES: Final = 128 * 1024
_LENGTHS: Final = struct.Struct("<II")
_MAX_FDS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a child becomes before its entry is called; `uid` None keeps the zygote's."""

    uid: int | None = None
    gid: int | None = None
    environment: dict[str, str] = field(default_factory=dict)
    threads: int = 1
    nice: int = 0
    max_processes: int | None = None


@dataclass(frozen=True)
class Ready:
    """The zygote has imported what it should and waits for orders."""


@dataclass(frozen=True)
class Unfit:
    """The zygote cannot be forked safely (`reason` is a sentence) and ends."""

    reason: str


@dataclass(frozen=True)
class Spawned:
    """An instance was forked; the packet carries its pidfd."""

    instance: str
    pid: int


@dataclass(frozen=True)
class Refused:
    """An instance could not be forked."""

    instance: str
    reason: str


@dataclass(frozen=True)
class Exited:
    """An instance has died, and nothing of what it started is left; `status` as of waitpid(2)."""

    pid: int
    status: int


Report = Ready | Unfit | Spawned | Refused | Exited
_REPORTS: Final[dict[str, type[Report]]] = {kind.__name__: kind for kind in (Ready, Unfit, Spawned, Refused, Exited)}


def encode_order(instance: str, settings: Settings, boot: bytes) -> bytes:
    """Return the order to fork `instance`; ValueError when it is larger than a packet may be."""
    head, private = instance.encode(), json.dumps(asdict(settings)).encode()
    order = _LENGTHS.pack(len(head), len(private)) + head + private + boot
    if len(order) > MAX_ORDER_BYTES:
        raise ValueError(
            f"the boot record and the environment of {instance} take {len(order)} bytes of {MAX_ORDER_BYTES}"
        )
    return order


def read_head(order: memoryview) -> str:
    """Return which instance the order is for."""
    head, _ = _LENGTHS.unpack_from(order)
    start = _LENGTHS.size
    return bytes(order[start : start + head]).decode()


def read_private(order: memoryview) -> tuple[Settings, bytes]:
    """Return the child's settings and boot record; for the child alone."""
    head, private = _LENGTHS.unpack_from(order)
    start = _LENGTHS.size + head
    settings = Settings(**json.loads(bytes(order[start : start + private])))
    return settings, bytes(order[start + private :])


def send_report(control: socket.socket, report: Report, fds: Sequence[int] = ()) -> None:
    """Send what the zygote has to say, with `fds` beside it."""
    data = json.dumps({"kind": type(report).__name__, **asdict(report)}).encode()
    control.sendmsg([data], _rights(fds))


def receive_report(control: socket.socket) -> tuple[Report, list[int]] | None:
    """Return the next report and its file descriptors, None at the end; BlockingIOError when there is none yet."""
    data, ancillary, _, _ = control.recvmsg(64 * 1024, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None
    fields: dict[str, Any] = json.loads(data)
    return _REPORTS[fields.pop("kind")](**fields), _received(ancillary)


def send_order(control: socket.socket, order: bytes | memoryview, fds: Sequence[int]) -> None:
    """Send an order of `encode_order` with its two descriptors; BlockingIOError when the socket is full."""
    control.sendmsg([order], _rights(fds))


def receive_order(control: socket.socket, buffer: bytearray) -> tuple[memoryview, list[int]]:
    """Read the next order into `buffer`; the view is empty at the end of the conversation."""
    size, ancillary, _, _ = control.recvmsg_into([buffer], socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC)
    return memoryview(buffer)[:size], _received(ancillary)


def _rights(fds: Sequence[int]) -> "list[tuple[int, int, array.array[int]]]":
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def _received(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    fds: array.array[int] = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()
