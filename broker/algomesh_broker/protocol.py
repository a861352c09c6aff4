"""The NATS client protocol without sockets: bytes in, method calls out.

Source: https://docs.nats.io/reference/reference-protocols/nats-protocol. A payload is handed
out as bytes, or from 16 KiB on as a memoryview of what was read, without a copy.
"""

from typing import Final, Protocol

from msgspec import Struct

from algomesh_broker.errors import BadMessage, BadName

_CRLF = b"\r\n"
_LONGEST_LINE = 64 * 1024
_VIEW_FROM_BYTES = 16 * 1024
NO_RESPONDERS = 503
_MOST_KEPT: Final = 4096
_LONGEST_KEPT: Final = 512


class Message(Struct, frozen=True, gc=False):
    """One message as a subscription's callback gets it; `status` is NATS' own, 503 for no responders."""

    subject: str
    reply: str
    data: bytes | memoryview
    status: int = 0
    headers: dict[str, str] | None = None


class Receiver(Protocol):
    """What the parser calls, in the order of the wire."""

    def on_message(self, sid: int, message: Message) -> None:
        """A message for subscription `sid`."""

    def on_info(self, json: bytes) -> None:
        """The server's INFO, as JSON."""

    def on_ping(self) -> None:
        """The server asks whether we live."""

    def on_pong(self) -> None:
        """Everything sent before our PING has been processed."""

    def on_error(self, text: str) -> None:
        """An -ERR, without its quotes."""


class Parser:
    """Cuts the stream of bytes into protocol operations."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._chunks: list[bytes] = []
        self._heads: dict[bytes, tuple[int, str, str]] = {}
        self._buffered = 0
        self._needed = 0

    def feed(self, data: bytes) -> None:
        """Take what was read. Raises BadMessage when this is not NATS."""
        if self._chunks:
            self._chunks.append(data)
            self._buffered += len(data)
            if self._buffered < self._needed:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        rest = self._parse(data)
        if rest < len(data):
            self._chunks.append(data[rest:])
            self._buffered = len(data) - rest
        else:
            self._needed = 0

    def _parse(self, data: bytes) -> int:
        """Handle every whole operation in `data`; return where the first incomplete one begins."""
        at, size = 0, len(data)
        receiver = self.receiver
        while at < size:
            end = data.find(_CRLF, at)
            if end < 0:
                if size - at > _LONGEST_LINE:
                    raise BadMessage("the server sent a line that does not end; is this a NATS port?")
                self._needed = 0
                return at
            after = end + 2
            kind = data[at]
            if kind == 77:  # MSG <subject> <sid> [reply] <size>
                last = data.rfind(b" ", at, end)
                stop = after + int(data[last:end])
                if stop + 2 > size:
                    self._needed = stop + 2 - at
                    return at
                head = data[at:last]
                sid, subject, reply = self._heads.get(head) or self._read_head(head)
                at = stop + 2
                payload = data[after:stop] if stop - after < _VIEW_FROM_BYTES else memoryview(data)[after:stop]
                receiver.on_message(sid, Message(subject, reply, payload))
            elif kind == 72:  # HMSG <subject> <sid> [reply] <header size> <size>
                fields = data[at:end].split()
                start, stop = after + int(fields[-2]), after + int(fields[-1])
                if stop + 2 > size:
                    self._needed = stop + 2 - at
                    return at
                reply = fields[3].decode() if len(fields) == 6 else ""
                status, headers = parse_headers(data[after:start])
                at = stop + 2
                payload = data[start:stop] if stop - start < _VIEW_FROM_BYTES else memoryview(data)[start:stop]
                receiver.on_message(int(fields[2]), Message(fields[1].decode(), reply, payload, status, headers))
            else:
                line = data[at:end]
                at = after
                self._operation(line)
        return at

    def _read_head(self, head: bytes) -> tuple[int, str, str]:
        """Subscription, subject and reply of a message. The same few come again and again, so they are kept."""
        fields = head.split()
        known = int(fields[2]), fields[1].decode(), fields[3].decode() if len(fields) == 4 else ""
        if len(head) <= _LONGEST_KEPT:
            if len(self._heads) >= _MOST_KEPT:
                self._heads.clear()
            self._heads[head] = known
        return known

    def _operation(self, line: bytes) -> None:
        word = line[:5].upper()
        if word.startswith(b"PING"):
            self.receiver.on_ping()
        elif word.startswith(b"PONG"):
            self.receiver.on_pong()
        elif word.startswith(b"INFO"):
            self.receiver.on_info(line[5:])
        elif word.startswith(b"-ERR"):
            self.receiver.on_error(line[5:].decode(errors="replace").strip().strip("'"))
        elif not word.startswith(b"+OK"):
            raise BadMessage(f"the server said {line[:40]!r}; is this a NATS port?")


def parse_headers(raw: bytes) -> tuple[int, dict[str, str]]:
    """The status (0: none) and the headers of a header block."""
    lines = raw.decode(errors="replace").split("\r\n")
    first = lines[0].split(" ", 2)
    status = int(first[1]) if len(first) > 1 and first[1].isdigit() else 0
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip()] = value.strip()
    if len(first) > 2:
        headers["Description"] = first[2]
    return status, headers


class Publisher:
    """Formats what is published. The same few subjects come again and again, so what was checked is kept."""

    def __init__(self) -> None:
        self._checked: dict[tuple[str, str], bytes] = {}

    def format(self, subject: str, payload: bytes, reply: str = "") -> bytes:
        """PUB with its payload, ready to be written. Raises BadName for what is no subject."""
        head = self._checked.get((subject, reply)) or self._check(subject, reply)
        return b"%b%d\r\n%b\r\n" % (head, len(payload), payload)

    def _check(self, subject: str, reply: str) -> bytes:
        if len(self._checked) >= _MOST_KEPT:
            self._checked.clear()
        head = self._checked[subject, reply] = b"PUB %b " % _address(subject, reply)
        return head


def _address(subject: str, reply: str) -> bytes:
    """Where a message goes, as it is written. Raises BadName for what is no subject."""
    if " " in subject or " " in reply or not subject or not subject.isprintable() or not reply.isprintable():
        # nats-server would read what follows as commands of ours.
        raise BadName(f"{subject!r} with reply {reply!r}: a subject has no spaces, line breaks or control characters")
    return (f"{subject} {reply}" if reply else subject).encode()


def format_with_headers(subject: str, payload: bytes, reply: str, headers: dict[str, str]) -> bytes:
    """HPUB with its payload, ready to be written. Raises BadName for what is no subject."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"NATS/1.0\r\n{lines}\r\n".encode()
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (_address(subject, reply), len(head), len(head) + len(payload), head, payload)
