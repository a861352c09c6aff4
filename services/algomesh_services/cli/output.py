"""What the command line prints: JSON, aligned text, or a table with colour on a terminal.

Results go to stdout; everything said about them goes to stderr, so that a pipe gets results only.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]
_STYLES: Final = {
    "ready": "green", "succeeded": "green", "running": "cyan", "starting": "yellow", "loading": "yellow",
    "draining": "yellow", "retiring": "yellow", "dead": "red", "failed": "red", "lost": "red", "expired": "red",
    "refused": "red", "cancelled": "dim", "revoked": "dim",
}  # fmt: skip


class Column(NamedTuple):
    """One column: the field it shows, its heading, and how a value is written."""

    field: str
    heading: str
    write: Callable[[Any], str] = str
    is_number: bool = False
    is_state: bool = False


def print_rows(rows: Sequence[Row], columns: Sequence[Column], *, as_json: bool, empty: str) -> None:
    """Print a list: as JSON a list of objects, else a table, or on stderr the sentence `empty`."""
    if as_json:
        print_json(rows)
    elif not rows:
        note(empty)
    elif is_terminal(sys.stdout):
        from rich.console import Console

        Console().print(make_table(rows, columns))
    else:
        write("\n".join(plain_lines(rows, columns)))


def print_json(value: Any) -> None:
    """Print one JSON document on one line."""
    write(json.dumps(value, ensure_ascii=False, default=str))


def write(text: str) -> None:
    """Print a line of results, whatever the terminal's encoding cannot say being escaped."""
    data = (text + "\n").encode(sys.stdout.encoding or "utf-8", "backslashreplace")
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def make_table(rows: Iterable[Row], columns: Sequence[Column]) -> "Table":
    """A table for a terminal; `rich` shortens it to the width."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", expand=False)
    for column in columns:
        table.add_column(column.heading, justify="right" if column.is_number else "left", overflow="fold")
    for row in rows:
        cells = [(column, column.write(row[column.field])) for column in columns]
        table.add_row(*(Text(text, style=_STYLES.get(text, "") if column.is_state else "") for column, text in cells))
    return table


def plain_lines(rows: Iterable[Row], columns: Sequence[Column]) -> list[str]:
    """The table as aligned lines without decoration; the last column is never padded or cut."""
    cells = [[column.heading.upper() for column in columns]]
    cells += [[" ".join(column.write(row[column.field]).split()) or "-" for column in columns] for row in rows]
    widths = [max(map(len, texts)) for texts in zip(*cells, strict=True)]
    lines = []
    for texts in cells:
        padded = [
            text.rjust(width) if column.is_number else text.ljust(width)
            for text, width, column in zip(texts, widths, columns, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def note(text: str) -> None:
    """Say something about the results, on stderr; dim on a terminal."""
    _say(text, "2")


def say_error(text: str) -> None:
    """Say what went wrong, on stderr; red on a terminal."""
    _say(f"error: {text}", "31")


def is_terminal(stream: TextIO) -> bool:
    """Whether colour and live output make sense there. NO_COLOR and a dumb terminal say no."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def ago(since: float, now: float | None = None) -> str:
    """How long ago a clock time was: `12 s`, `3 min`, `2 h`, `5 d`; nothing for 0."""
    if not since:
        return ""
    seconds = max(0.0, (time.time() if now is None else now) - since)
    for limit, divisor, unit in ((100, 1, "s"), (6000, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def milliseconds(value: float) -> str:
    """Milliseconds with as many digits as matter; nothing for 0."""
    if not value:
        return ""
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _say(text: str, code: str) -> None:
    line = f"\x1b[{code}m{text}\x1b[0m\n" if is_terminal(sys.stderr) else f"{text}\n"
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except (OSError, UnicodeEncodeError):
        sys.stderr.write(line.encode("ascii", "backslashreplace").decode())
