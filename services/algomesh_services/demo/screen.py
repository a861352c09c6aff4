"""What the demo prints: plain lines that fit the width, a little colour and a moving line on a terminal."""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Final, TextIO

from rich.cells import cell_len, set_cell_size

_NARROWEST, _WIDEST, _UNKNOWN = 40, 110, 80
_MOVE_EVERY_S: Final = 0.1
_SAY_EVERY_S: Final = 5.0


class Screen:
    """Lines on `stream`; with `is_silent` only `last_line` is printed."""

    def __init__(self, stream: TextIO = sys.stdout, *, is_silent: bool = False) -> None:
        self._stream = stream
        self._is_silent = is_silent
        self._is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._has_colour = self._is_terminal and "NO_COLOR" not in os.environ
        columns = shutil.get_terminal_size((_UNKNOWN, 24)).columns if self._is_terminal else _UNKNOWN
        self.width = min(max(columns - 1, _NARROWEST), _WIDEST)
        self._has_moving_line = False
        self._said_at = time.monotonic()

    def title(self, text: str) -> None:
        """A heading, with an empty line before it."""
        self.line()
        for part in _wrapped(text, self.width):
            self.line(f"\x1b[1m{part}\x1b[0m" if self._has_colour else part)

    def line(self, text: str = "") -> None:
        """One line as it is."""
        if not self._is_silent:
            self._clear()
            self._write(text + "\n")
            self._said_at = 0.0 if self._is_terminal else time.monotonic()

    def text(self, text: str) -> None:
        """Prose, indented and wrapped."""
        for part in _wrapped(text, self.width - 2):
            self.line(f"  {part}")

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]], *, widest: int = 0) -> None:
        """Aligned columns, numbers (all but column `widest`) to the right; that column is cut where space ends."""
        cells = [list(headings), *map(list, rows)]
        widths = [max(cell_len(row[index]) for row in cells) for index in range(len(headings))]
        others = sum(width + 2 for index, width in enumerate(widths) if index != widest)
        widths[widest] = max(8, min(widths[widest], self.width - 2 - others))
        for number, row in enumerate(cells):
            parts = [
                _fitted(text, width) if index == widest else " " * (width - cell_len(text)) + text
                for index, (text, width) in enumerate(zip(row, widths, strict=True))
            ]
            text = "  " + "  ".join(parts).rstrip()
            self.line(f"\x1b[2m{text}\x1b[0m" if number == 0 and self._has_colour else text)

    def moving(self, text: str) -> None:
        """How far something is: one line that changes on a terminal, a new one now and then elsewhere."""
        now = time.monotonic()
        if self._is_silent or now - self._said_at < (_MOVE_EVERY_S if self._is_terminal else _SAY_EVERY_S):
            return
        self._said_at = now
        if self._is_terminal:
            self._write("\r" + _fitted(f"  {text}", self.width) + "\r")
            self._has_moving_line = True
        else:
            self._write(f"  {text}\n")

    def last_line(self, text: str) -> None:
        """The result, printed also when silent."""
        self._clear()
        self._write(text + "\n")

    def _clear(self) -> None:
        if self._has_moving_line:
            self._write("\r" + " " * self.width + "\r")
            self._has_moving_line = False

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()


def _fitted(text: str, width: int) -> str:
    """The text cut or padded to exactly `width` cells; what was cut shows."""
    one_line = " ".join(text.split()) if text.strip() == text else text
    return set_cell_size(one_line, width - 1) + "…" if cell_len(one_line) > width else set_cell_size(one_line, width)


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]
