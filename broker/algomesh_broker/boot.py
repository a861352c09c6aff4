"""What a launcher tells an instance at its start, and how an instance says that its start failed.

The record is msgpack (`platform.pack`, `platform.unpack`), or a line of JSON for what does not run our code from its
first moment. It passes through memory only, and is secret: it holds the instance's token. An instance whose start
fails writes `failure_line` as the last line of its log and ends with one of the exit codes below; the launcher reads
both.
"""

from typing import Final, Self

import msgspec
from msgspec import Struct

from algomesh_broker.errors import BadMessage
from algomesh_broker.platform import Options

LOAD_FAILED_CODE: Final = 71
IMPORT_FAILED_CODE: Final = 72
NOT_CONNECTED_CODE: Final = 73

_FAILED_MARK: Final = "ALGOMESH-FAILED "


class Boot(Struct, frozen=True, kw_only=True):
    """One instance: who it is, where its code lies, where it connects.

    `folder` is the unpacked archive and `entry` is `module:attribute` in it. `launched_ns` is CLOCK_MONOTONIC when it
    was launched, `reason` why, `note` what it should know of its place (no GPU here, say). `threads` is how many
    threads a mathematical library may use. `route_key` is the registry's public nkey, which signs route tokens.
    A program in another language has its `command` instead of an entry (`as_line` is what it reads).
    """

    instance: str
    launcher: str
    owner: str
    name: str
    version: str
    folder: str
    entry: str
    nats_url: str
    token: str
    options: Options
    launched_ns: int
    reason: str = ""
    note: str = ""
    threads: int = 1
    route_key: str = ""
    command: list[str] = []

    def as_line(self) -> bytes:
        """The record as one line of JSON: what a program in another language, or in a container, reads from stdin."""
        return msgspec.json.encode(self) + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> Self:
        """The record that `as_line` made. Raises BadMessage."""
        try:
            return msgspec.json.decode(line, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadMessage(f"not a boot record: {error}") from error


class StartFailure(Struct, frozen=True, kw_only=True):
    """Why an instance could not start: a wire code such as `load_failed`, and one line of text."""

    code: str
    message: str


def failure_line(code: str, message: str) -> str:
    """The line an instance writes last when its start fails; without the newline."""
    return _FAILED_MARK + msgspec.json.encode(StartFailure(code=code, message=message)).decode()


def find_failure(lines: list[str]) -> StartFailure | None:
    """The failure said last in these lines of a log, or None."""
    for line in reversed(lines):
        _, mark, text = line.partition(_FAILED_MARK)
        if mark:
            try:
                return msgspec.json.decode(text, type=StartFailure)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
    return None
