"""How the command line writes tables, times and figures."""

import io

import pytest

from algomesh_services.cli.output import Column, ago, is_terminal, make_table, milliseconds, plain_lines

COLUMNS = (Column("name", "name"), Column("load", "load", is_number=True), Column("note", "note"))
ROWS = [{"name": "a", "load": 5, "note": ""}, {"name": "long one", "load": 12, "note": "two\nlines"}]


def test_plain_tables_are_aligned_and_a_row_is_a_line() -> None:
    assert plain_lines(ROWS, COLUMNS) == [
        "NAME      LOAD  NOTE",
        "a            5  -",
        "long one    12  two lines",
    ]


def test_a_table_for_a_terminal_keeps_brackets_that_look_like_markup() -> None:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=60).print(make_table([{"name": "[red]", "load": 1, "note": "[/]"}], COLUMNS))

    assert "[red]" in out.getvalue()
    assert "[/]" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (5_999, "100 min"), (7_200, "2 h"), (200_000, "2 d"), (-5, "0 s")],
)
def test_times_are_told_as_how_long_ago(seconds: float, text: str) -> None:
    assert ago(1_000_000 - seconds, now=1_000_000) == text


def test_milliseconds_have_the_digits_that_matter() -> None:
    assert [milliseconds(value) for value in (0, 0.234, 12.34, 1234.5)] == ["", "0.2", "12.3", "1,234"]


def test_a_pipe_is_no_terminal() -> None:
    assert not is_terminal(io.StringIO())
