"""`multipart/form-data`, from bytes that have come already: a few named parts, read without a copy.

A pipeline and its input come so, as `curl -F` sends them. Only what RFC 7578 needs is understood; the rest is refused.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from algomesh.errors import BadInput

MOST_PARTS: Final = 16
LONGEST_HEAD_BYTES: Final = 8_192
_BOUNDARY: Final = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.ASCII | re.IGNORECASE)
_NAME: Final = re.compile(r';\s*name=(?:"([^"\\]{1,64})"|([^\s;"]{1,64}))', re.IGNORECASE)
_PLAIN: Final = frozenset({"", "7bit", "8bit", "binary", "identity"})


class Part(NamedTuple):
    """One part: its headers, by lower-case names, and its bytes."""

    headers: Mapping[str, str]
    payload: memoryview


def read_form(content_type: str, body: bytes) -> dict[str, Part]:
    """The parts of a form by their names. Raises BadInput."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise BadInput("the Content-Type of the form has no boundary")
    delimiter = b"--" + (found[1] or found[2]).encode()
    parts: dict[str, Part] = {}
    at, after = _find(body, delimiter, 0)
    while at >= 0 and body[after : after + 2] != b"--":
        if len(parts) == MOST_PARTS:
            raise BadInput(f"the form has over {MOST_PARTS} parts")
        begin = body.find(b"\r\n", after) + 2
        end = body.find(b"\r\n\r\n", begin - 2, begin + LONGEST_HEAD_BYTES)
        if begin < 2 or end < 0:
            raise BadInput(f"part {len(parts) + 1} of the form has no head, or one over {LONGEST_HEAD_BYTES} bytes")
        headers = _headers(body[begin:end] if end > begin else b"")
        name = _name(headers)
        if name in parts:
            raise BadInput(f"the form has two parts named {name!r}")
        at, after = _find(body, delimiter, end + 4)
        if at >= 0:
            parts[name] = Part(headers, memoryview(body)[end + 4 : at])
    if at < 0:
        raise BadInput("the form has no end: its last boundary is missing")
    return parts


def _find(body: bytes, delimiter: bytes, start: int) -> tuple[int, int]:
    """Where the line break before the next delimiter is, and where the delimiter ends; -1 when there is none."""
    if start == 0 and body.startswith(delimiter):
        return 0, len(delimiter)
    wanted = b"\r\n" + delimiter
    while (at := body.find(wanted, start)) >= 0:
        after = at + len(wanted)
        if body[after : after + 2] in (b"--", b"\r\n") or body[after : after + 1] in (b" ", b"\t"):
            return at, after
        start = after  # a longer word that only begins like it
    return -1, -1


def _headers(head: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in head.split(b"\r\n"):
        name, colon, value = line.decode("utf-8", "replace").partition(":")
        if line and not colon:
            raise BadInput("a head in the form is not of the form `Name: value`")
        headers[name.strip().lower()] = value.strip()
    for header in ("content-transfer-encoding", "content-encoding"):
        if headers.get(header, "").lower() not in _PLAIN:
            raise BadInput(f"a part of the form has a {header}; send it plainly")
    return headers


def _name(headers: Mapping[str, str]) -> str:
    found = _NAME.search(headers.get("content-disposition", ""))
    if found is None:
        raise BadInput("a part of the form has no name (Content-Disposition: form-data; name=…)")
    return found[1] or found[2]
