"""The posts that the demo classifies: those that come with it, or the user's.

A file has one post a line. If its lines have tabs, the last column is the text; if besides the second of three is
always a number, that is what people thought of the post, and the versions are compared with it.
"""

from pathlib import Path
from typing import NamedTuple

import algomesh_services

CATALOG = Path(algomesh_services.__file__).parent.parent / "catalog"
_LARGEST_BYTES = 256 * 2**20


class BadPosts(Exception):
    """The file of posts cannot be used; the sentence says why."""


class Posts(NamedTuple):
    """Texts, where they are from, and people's ratings of them if there are any."""

    source: str
    texts: list[str]
    ratings: list[float] | None = None


def read_posts(file: Path | None = None) -> Posts:
    """Read the posts in `file`, or the sample. Raises BadPosts."""
    place = file or CATALOG / "sample_posts.txt"
    try:
        if place.stat().st_size > _LARGEST_BYTES:
            raise BadPosts(f"{place} is larger than 256 MiB; give a part of it")
        text = place.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        hint = "" if file else "; the demo needs a checkout of the repository"
        raise BadPosts(f"the posts in {place} cannot be read: {error.strerror}{hint}") from error
    posts = parse_posts(text, source=str(place) if file else "the sample that comes with it")
    if not posts.texts:
        raise BadPosts(f"{place} has no posts in it; write one a line")
    return posts


def parse_posts(text: str, *, source: str = "") -> Posts:
    """Cut a file's content into posts; empty lines do not count."""
    lines = [line for line in text.split("\n") if line.strip()]
    rows = [line.rstrip("\r").split("\t") for line in lines]
    if not rows or not all(len(row) == len(rows[0]) > 1 for row in rows):
        return Posts(source, [line.strip() for line in lines])
    ratings = [_number(row[1]) for row in rows] if len(rows[0]) == 3 else []
    if len(ratings) > 1 and ratings[0] is None and None not in ratings[1:] and _number(rows[0][0]) is None:
        rows, ratings = rows[1:], ratings[1:]  # a line of headings
    known = [rating for rating in ratings if rating is not None]
    return Posts(source, [row[-1].strip() for row in rows], known if known and len(known) == len(rows) else None)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
