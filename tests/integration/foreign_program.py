"""An algorithm that has nothing of ours: the standard library alone, one thread, the protocol by hand.

Tests put this file into a version's archive and run it as the version's command; the arguments say how it misbehaves.
`mute`: it falls silent once it is ready. `broken`: its start fails, and it says why.
`late`: each run is past its limit.
"""

import json
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Any


def pack(value: Any) -> bytes:
    """As much of msgpack as a lease and a result need."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return struct.pack(">Bq", 0xD3, value)
    if isinstance(value, float):
        return struct.pack(">Bd", 0xCB, value)
    if isinstance(value, str):
        data = value.encode()
        return struct.pack(">BI", 0xDB, len(data)) + data
    if isinstance(value, bytes):
        return struct.pack(">BI", 0xC6, len(value)) + value
    return struct.pack(">BI", 0xDD, len(value)) + b"".join(map(pack, value))


def unpack(data: bytes, at: int = 0) -> tuple[Any, int]:
    """As much of msgpack as a call needs."""
    kind = data[at]
    at += 1
    if kind <= 0x7F:
        return kind, at
    if kind >= 0xE0:
        return kind - 256, at
    if 0x90 <= kind <= 0x9F:
        return unpack_list(data, at, kind & 15)
    if 0xA0 <= kind <= 0xBF:
        return data[at : at + (kind & 31)].decode(), at + (kind & 31)
    simple = {0xC0: None, 0xC2: False, 0xC3: True}
    if kind in simple:
        return simple[kind], at
    numbers = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h"}
    numbers |= {0xD2: ">i", 0xD3: ">q"}
    if kind in numbers:
        size = struct.calcsize(numbers[kind])
        return struct.unpack(numbers[kind], data[at : at + size])[0], at + size
    lengths = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I", 0xDC: ">H", 0xDD: ">I"}
    size = struct.calcsize(lengths[kind])
    length = struct.unpack(lengths[kind], data[at : at + size])[0]
    at += size
    if kind in (0xDC, 0xDD):
        return unpack_list(data, at, length)
    found = data[at : at + length]
    return (found.decode() if kind in (0xD9, 0xDA, 0xDB) else found), at + length


def unpack_list(data: bytes, at: int, length: int) -> tuple[list[Any], int]:
    """`length` values from `at` on."""
    found = []
    for _ in range(length):
        value, at = unpack(data, at)
        found.append(value)
    return found, at


class Program:
    """One instance: says that it lives, and answers `<payload> from <instance>`."""

    def __init__(self, boot: dict[str, Any], how: str) -> None:
        self.boot, self.how = boot, how
        self.instance, self.total, self.overdue_ms = boot["instance"], 0, 0
        host, _, port = boot["nats_url"].rpartition("/")[2].rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.buffer = b""
        self.line()
        connect = {"verbose": False, "headers": True, "no_responders": True, "auth_token": boot["token"], "lang": "sh"}
        self.socket.sendall(f"CONNECT {json.dumps(connect)}\r\nPING\r\n".encode())
        while self.line() != b"PONG":
            pass

    def say(self, phase: str, failure: str = "") -> None:
        """Publish a lease."""
        token = self.boot["token"] if self.instance.startswith("x") else ""
        lease = ["lease", self.instance, phase, 0, self.total, self.overdue_ms, failure, token]
        self.publish(f"lease.{self.instance}", pack(lease))
        self.said_at = time.monotonic()

    def serve(self) -> None:
        """Take calls until SIGTERM."""
        owner, name, version = self.boot["owner"], self.boot["name"], self.boot["version"].replace(".", "-")
        self.socket.sendall(f"SUB call.{owner}.{name}.{version}.* workers 1\r\n".encode())
        self.socket.sendall(f"SUB _INBOX.{self.instance}.pull 2\r\n".encode())
        self.next = f"$JS.API.CONSUMER.MSG.NEXT.parked.{owner}~{name}~{version}"
        self.is_over = False
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "is_over", True))
        self.pull()
        self.say("ready")
        print("ready", flush=True)
        while not self.is_over:
            if time.monotonic() - self.said_at >= 1 and self.how != "mute":
                self.say("ready")
            if self.buffer or select.select([self.socket], [], [], 0.1)[0]:
                self.read()
        self.say("draining")
        self.say("ended")

    def pull(self) -> None:
        """Ask for a parked call."""
        self.publish(self.next, b'{"batch":1,"expires":30000000000}', f"_INBOX.{self.instance}.pull")

    def read(self) -> None:
        """One message."""
        words = self.line().decode().split()
        if words[0] == "PING":
            self.socket.sendall(b"PONG\r\n")
        if words[0] not in ("MSG", "HMSG"):
            return
        head = int(words[-2]) if words[0] == "HMSG" else 0
        data = self.exactly(int(words[-1]) + 2)[head:-2]
        if words[2] == "2":
            self.pull()
            if not data:
                return
            self.publish(words[3], b"+ACK")
        self.answer(words[1].rpartition(".")[2], data)

    def answer(self, caller: str, data: bytes) -> None:
        """Run one call."""
        call = unpack(data)[0]
        run, attempt, session, number, payload = call[1], call[5], call[6], call[7], bytes(call[13])
        self.total += 1
        if self.how == "late":
            self.overdue_ms = 60_000
            self.say("ready")
            time.sleep(60)
        version = "/".join(self.boot[each] for each in ("owner", "name", "version"))
        output = json.dumps(f"{json.loads(payload)} from {self.instance}").encode()
        result = ["result", run, attempt, self.instance, version, "json", "", output, 0.0, 0.0]
        owner, name = self.boot["owner"], self.boot["name"]
        self.publish(f"reply.{owner}.{name}.{caller}.{session}.{number}", pack(result))

    def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        """Send a message."""
        self.socket.sendall(f"PUB {subject} {reply} {len(data)}\r\n".encode() + data + b"\r\n")

    def line(self) -> bytes:
        """The next line of the server's."""
        while b"\r\n" not in self.buffer:
            self.fill()
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line

    def exactly(self, count: int) -> bytes:
        """The next bytes of the server's."""
        while len(self.buffer) < count:
            self.fill()
        found, self.buffer = self.buffer[:count], self.buffer[count:]
        return found

    def fill(self) -> None:
        """Read more, however much it is."""
        data = self.socket.recv(65536)
        if not data:
            sys.exit("the server has gone")
        self.buffer += data


def main() -> None:
    """Be an instance."""
    how = sys.argv[1] if len(sys.argv) > 1 else ""
    text = sys.stdin.read()
    print("lines", text.count("\n"), "cwd", os.getcwd(), "env", sorted(os.environ), flush=True)  # noqa: PTH109
    program = Program(json.loads(text), how)
    program.say("loading")
    if how == "broken":
        program.say("ended", "load_failed the weights are not there")
        sys.exit(3)
    program.serve()


if __name__ == "__main__":
    main()
