"""The NATS protocol without sockets."""

import pytest

from algomesh_broker.errors import BadMessage, BadName
from algomesh_broker.protocol import Message, Parser, Publisher, format_with_headers, parse_headers


class Heard:
    """Writes down what the parser says."""

    def __init__(self) -> None:
        self.said: list[object] = []

    def on_message(self, sid: int, message: Message) -> None:
        self.said.append((sid, message.subject, message.reply, bytes(message.data), message.status))

    def on_info(self, json: bytes) -> None:
        self.said.append(("info", json))

    def on_ping(self) -> None:
        self.said.append("ping")

    def on_pong(self) -> None:
        self.said.append("pong")

    def on_error(self, text: str) -> None:
        self.said.append(("error", text))


WIRE = (
    b'INFO {"a":1}\r\nPING\r\nMSG a.b 1 5\r\nhello\r\nMSG a.b 2 re.ply 0\r\n\r\n'
    b"HMSG c 3 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\nPONG\r\n+OK\r\n-ERR 'Permissions Violation'\r\n"
)
SAID = [
    ("info", b'{"a":1}'),
    "ping",
    (1, "a.b", "", b"hello", 0),
    (2, "a.b", "re.ply", b"", 0),
    (3, "c", "", b"hi", 0),
    "pong",
    ("error", "Permissions Violation"),
]


def test_operations_are_cut_out_of_one_read() -> None:
    heard = Heard()

    Parser(heard).feed(WIRE)

    assert heard.said == SAID


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_operations_are_put_together_from_pieces_of_any_size(size: int) -> None:
    heard = Heard()
    parser = Parser(heard)
    wire = WIRE

    for at in range(0, len(wire), size):
        parser.feed(wire[at : at + size])

    assert heard.said == SAID


def test_what_came_before_is_told_from_what_is_new() -> None:
    heard = Heard()
    parser = Parser(heard)

    for reply in ("", "re.ply", "r" * 600):
        for body in (b"one", b"three"):
            parser.feed(b"MSG a.b 12 %b%d\r\n%b\r\n" % (f"{reply} ".encode() if reply else b"", len(body), body))

    assert heard.said == [
        (12, "a.b", reply, body, 0) for reply in ("", "re.ply", "r" * 600) for body in (b"one", b"three")
    ]


def test_a_message_without_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        Parser(Heard()).feed(b"MSG a.b 1 five\r\nhello\r\n")


def test_a_large_payload_arrives_whole() -> None:
    heard = Heard()
    parser = Parser(heard)
    payload = bytes(range(256)) * 4096
    wire = b"MSG big 9 %d\r\n%b\r\nPING\r\n" % (len(payload), payload)

    for at in range(0, len(wire), 65536):
        parser.feed(wire[at : at + 65536])

    assert heard.said == [(9, "big", "", payload, 0), "ping"]


def test_another_protocol_is_refused() -> None:
    with pytest.raises(BadMessage, match="NATS port"):
        Parser(Heard()).feed(b"HTTP/1.1 400 Bad Request\r\n\r\n"[5:])


def test_a_status_and_its_words_are_read() -> None:
    assert parse_headers(b"NATS/1.0 503\r\n\r\n") == (503, {})
    assert parse_headers(b"NATS/1.0 404 No Messages\r\nX: y\r\n\r\n") == (404, {"Description": "No Messages", "X": "y"})


def test_a_publish_is_formatted_alike_each_time() -> None:
    publisher = Publisher()
    for payload in (b"xyz", b"longer"):
        assert publisher.format("a", payload, "r") == b"PUB a r %d\r\n%b\r\n" % (len(payload), payload)
        assert publisher.format("a", payload) == b"PUB a %d\r\n%b\r\n" % (len(payload), payload)


def test_a_publish_with_headers_counts_both_sizes() -> None:
    assert format_with_headers("a", b"xyz", "", {"K": "v"}) == b"HPUB a 18 21\r\nNATS/1.0\r\nK: v\r\n\r\nxyz\r\n"


@pytest.mark.parametrize(
    ("subject", "reply"), [("a b", ""), ("a\r\nPUB b 0", ""), ("", ""), ("a", "r\n"), ("a", "r s")]
)
def test_a_subject_that_would_carry_commands_is_refused(subject: str, reply: str) -> None:
    with pytest.raises(BadName, match="no spaces"):
        Publisher().format(subject, b"", reply)
    with pytest.raises(BadName, match="no spaces"):
        format_with_headers(subject, b"", reply, {})
