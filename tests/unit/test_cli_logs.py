"""How `algomesh logs` shows a line."""

import pytest

from algomesh_services.cli.fleet import _readable


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("printed", "printed"),
        ('{"words": 3}', '{"words": 3}'),
        ('{"event": "mine"}', '{"event": "mine"}'),
        ('{"event": 3, "instance": "l-1"}', '{"event": 3, "instance": "l-1"}'),
        ('{"broken', '{"broken'),
        (
            '{"event": "counted", "words": 3, "level": "info", "run": "r", "algorithm": "a", "instance": "l-1", '
            '"trace_id": "t"}',
            "counted words=3 trace_id='t'",
        ),
        (
            '{"event": "odd", "level": "warning", "instance": "l-1", "exception": "Traceback\\nValueError: why"}',
            "warning odd\nTraceback\nValueError: why",
        ),
    ],
)
def test_objects_are_shown_as_lines_and_prints_as_they_are(line: str, shown: str) -> None:
    assert _readable(line) == shown
