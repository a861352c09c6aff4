"""Forms as HTTP clients send them, and as nobody should."""

import pytest

from algomesh.errors import BadInput
from algomesh_services.gateway.forms import LONGEST_HEAD_BYTES, MOST_PARTS, read_form

FORM = 'multipart/form-data; boundary="xYz"'


def part(name: str, payload: bytes, *heads: str) -> bytes:
    head = "\r\n".join([f'Content-Disposition: form-data; name="{name}"', *heads])
    return b"--xYz\r\n" + head.encode() + b"\r\n\r\n" + payload + b"\r\n"


def test_the_parts_come_by_name_with_their_heads() -> None:
    body = part("pipeline", b"{}", "Content-Type: application/json") + part("input", b"a b") + b"--xYz--\r\n"

    parts = read_form(FORM, body)

    assert list(parts) == ["pipeline", "input"]
    assert parts["pipeline"].headers["content-type"] == "application/json"
    assert bytes(parts["input"].payload) == b"a b"


@pytest.mark.parametrize("payload", [b"", b"\r\n", b"\r\n--", b"\r\n--xYzz and more", b"--xYz", b"\x00" * 10_000])
def test_a_payload_may_hold_anything_but_its_boundary(payload: bytes) -> None:
    parts = read_form(FORM, part("input", payload) + b"--xYz--")

    assert bytes(parts["input"].payload) == payload


def test_what_comes_before_and_after_is_no_part() -> None:
    body = b"a preamble\r\n" + part("input", b"x") + b"--xYz--\r\nan epilogue\r\n--xYz\r\n"

    assert list(read_form("multipart/form-data; boundary=xYz", body)) == ["input"]


@pytest.mark.parametrize(
    ("media", "body", "says"),
    [
        ("multipart/form-data", b"", "boundary"),
        (FORM, b"", "no end"),
        (FORM, part("input", b"x"), "no end"),
        (FORM, b"--xYz", "no head"),
        (FORM, b"--xYz\r\n", "no head"),
        (FORM, b"--xYz\r\nno colon\r\n\r\nx\r\n--xYz--", "Name: value"),
        (FORM, b"--xYz\r\nContent-Type: text/plain\r\n\r\nx\r\n--xYz--", "no name"),
        (FORM, part("a", b"") + part("a", b"") + b"--xYz--", "two parts named 'a'"),
        (FORM, part("a", b"", "Content-Transfer-Encoding: base64") + b"--xYz--", "plainly"),
        (FORM, part("a", b"", "X: " + "y" * LONGEST_HEAD_BYTES) + b"--xYz--", "no head"),
        (FORM, b"".join(part(str(n), b"") for n in range(MOST_PARTS + 1)) + b"--xYz--", "over 16 parts"),
    ],
)
def test_what_is_no_form_is_refused(media: str, body: bytes, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        read_form(media, body)
