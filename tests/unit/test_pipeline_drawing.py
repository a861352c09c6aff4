"""How pipelines look."""

from functools import reduce
from operator import or_

import algomesh
from algomesh.pipeline import stage

CLEAN, SENTIMENT, TOPICS, MERGE, REPORT = (
    stage(f"text/{name}") for name in ("clean", "sentiment", "topics", "merge", "report")
)


def drawn(text: str) -> str:
    return text.strip("\n")


def test_the_drawing_of_the_picture() -> None:
    assert str(CLEAN | (SENTIMENT & TOPICS | MERGE) | REPORT) == drawn(
        """
text/clean ─▶ ┬─▶ text/sentiment ─┬──▶ text/merge ─▶ text/report
              └─▶ text/topics ────┘
"""
    )


def test_the_drawing_of_names_and_eaches() -> None:
    each = (SENTIMENT.options(timeout=5) & TOPICS | MERGE).each(in_flight=4, ordered=False)

    assert str(CLEAN | algomesh.all(mood=each, as_it_is=TOPICS)) == drawn(
        """
                             ┌──────── each, 4 in flight, as they come ────────┐
text/clean ─▶ ┬─ mood ─────▶ │ ┬─▶ text/sentiment (timeout=5) ─┬──▶ text/merge │ ─┬
              │              │ └─▶ text/topics ────────────────┘               │  │
              │              └─────────────────────────────────────────────────┘  │
              └─ as_it_is ─▶ text/topics ─────────────────────────────────────────┘
"""
    )


def test_branches_in_branches() -> None:
    assert str(CLEAN & algomesh.all(SENTIMENT, TOPICS | (MERGE & REPORT)) & TOPICS) == drawn(
        """
┬─▶ text/clean ───────────────────────────────┬
├─▶ ┬─▶ text/sentiment ────────────────────┬──┤
│   └─▶ text/topics ─▶ ┬─▶ text/merge ──┬──┘  │
│                      └─▶ text/report ─┘     │
└─▶ text/topics ──────────────────────────────┘
"""
    )


def test_what_is_too_wide_goes_on_below() -> None:
    wide = CLEAN | (SENTIMENT.options(timeout=5, cache="10m") & TOPICS) | MERGE.options(timeout=60) | REPORT

    assert str(wide) == drawn(
        """
text/clean ─▶ ┬─▶ text/sentiment (timeout=5, cache=600) ─┬──▶ text/merge (timeout=60) ─▶ text/report
              └─▶ text/topics ───────────────────────────┘
"""
    )
    assert str(wide | CLEAN) == str(wide) + "\n─▶ text/clean"


def test_a_long_chain_takes_several_rows_and_no_row_is_wide() -> None:
    rows = str(reduce(or_, [stage(f"test/stage-{number}") for number in range(1000)])).splitlines()

    assert max(map(len, rows)) <= 100
    assert rows[0].startswith("test/stage-0 ─▶ test/stage-1 ─▶")
    assert all(row.startswith("─▶ test/stage-") for row in rows[1:])


def test_the_expression_can_be_read_as_it_was_written() -> None:
    assert repr(CLEAN | (SENTIMENT & TOPICS | MERGE) | REPORT) == (
        "text/clean | (text/sentiment & text/topics) | text/merge | text/report"
    )
    assert repr(CLEAN & (SENTIMENT | TOPICS)) == "text/clean & (text/sentiment | text/topics)"
    assert repr(algomesh.all(x=CLEAN, y=TOPICS) & MERGE) == "all(x=text/clean, y=text/topics) & text/merge"
    assert repr(algomesh.all(CLEAN, TOPICS) & MERGE) == "all(text/clean, text/topics) & text/merge"
    assert repr((CLEAN | TOPICS).each(4)) == "(text/clean | text/topics).each(in_flight=4)"
    assert repr(CLEAN.options(retry=False, cache=False)) == "text/clean.options(retry=1, cache=False)"
